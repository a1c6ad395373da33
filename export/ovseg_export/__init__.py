"""Paddle → ONNX: the only package of the project that may import paddle, paddle2onnx or onnx."""
