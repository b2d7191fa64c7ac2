"""Measures cases (bundles, ONNX files, runs) beside one another and writes one report."""
