"""Paddle → ONNX: the only package of the project that may import paddle or onnx."""
