"""The online side: bundle loading, planning, scheduling, ONNX Runtime and HTTP. Never imports torch."""
