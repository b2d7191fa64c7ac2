"""The device runtime: standard library and numpy at import, onnxruntime and Pillow when a bundle is opened."""
