"""Paddle to ONNX: training, export and parity. Not part of the installed package."""
