"""Two models, the same samples: metrics, equivalence, gates."""
