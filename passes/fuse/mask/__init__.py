"""Masked attention scores that keep clear of denormals."""
