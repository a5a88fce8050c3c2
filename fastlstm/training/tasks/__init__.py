"""The Lightning modules that train models."""
