"""Renders synthetic road scenes, for synthetic_roads and synthetic_objects."""
