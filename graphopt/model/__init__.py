"""The ONNX file and its editable form: the only place that touches protobuf or gs internals."""
