"""graphopt: rewrite an ONNX model to a smaller, faster one, with the proof that it is right."""
