"""The rewrite passes, one file or one small folder each; imported as ``graphopt.passes``."""
