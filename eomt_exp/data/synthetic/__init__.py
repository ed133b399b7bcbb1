"""The renderer of synthetic road scenes, used through synthetic_roads and synthetic_objects."""
