"""ONNX Runtime: devices, sessions, bound memory, precision."""
