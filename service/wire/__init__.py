"""Bytes to named tensors and back: one codec a format."""
