"""Normalisations written out in arithmetic become one operator."""
