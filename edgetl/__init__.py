"""edgetl: from a folder of labelled images and a large teacher to a small verified bundle on a device."""

__version__ = "0.1.0"
