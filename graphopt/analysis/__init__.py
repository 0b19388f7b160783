"""Facts computed from a model, never changing it."""
