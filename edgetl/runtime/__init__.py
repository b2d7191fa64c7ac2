"""The device runtime: standard library and numpy at import, onnxruntime and Pillow when a bundle is opened.

    classifier = edgetl.runtime.load("BUNDLE")
    print(classifier.predict("photo.jpg").label)
"""

from edgetl.runtime.classifier import Classifier, Prediction, load
from edgetl.runtime.verify import VerifyReport, verify

__all__ = ["Classifier", "Prediction", "VerifyReport", "load", "verify"]
