"""Shape arithmetic becomes constant, or one chain for the whole model."""
