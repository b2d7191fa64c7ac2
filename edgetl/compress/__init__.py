"""Fewer channels and fewer bits: pruning, calibration, quantization."""
