"""Saves a trained model as safetensors + json and builds it again; nothing is ever pickled.

A slimmed model is its original architecture with smaller tensors: the shapes in the file are the whole description.
"""

from __future__ import annotations
