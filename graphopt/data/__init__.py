"""Samples: readers, preprocessing, labels, fingerprints."""
