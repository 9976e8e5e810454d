"""The online side: bundle loading, planning, scheduling, ONNX Runtime, HTTP. No torch in it."""
