"""The pass contract, the registry, recipes and the pass manager."""
