"""onnxruntime: providers, sessions, paired latency."""
