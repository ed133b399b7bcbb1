"""Anomaly segmentation in road scenes with mask transformers."""
