"""Activations written out in arithmetic become one operator."""
