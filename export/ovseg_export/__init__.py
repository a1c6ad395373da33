"""The export stage of ovseg: official Paddle models to ONNX, each proven against Paddle."""
