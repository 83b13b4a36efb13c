"""Tensor types, specs of named tensors, and float32 numbers that are equal on every processor."""
