"""Tensor types, what is known of named tensors, and float32 numbers that are equal on every processor."""
