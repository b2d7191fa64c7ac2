"""The device runtime: standard library and numpy at import, onnxruntime and Pillow when a bundle is opened.

    classifier = edgetl.runtime.load("BUNDLE")
    print(classifier.predict("photo.jpg").label)
"""

import sys

try:
    from edgetl.runtime.classifier import Classifier, Prediction, load
    from edgetl.runtime.verify import VerifyReport, verify
except KeyboardInterrupt:
    # `python -m edgetl.runtime` imports this file (and numpy) before __main__.py can catch anything; meanwhile argv[0]
    # is "-m". Ctrl-C then ends it with 130 as it does later. An app that imports edgetl gets its KeyboardInterrupt.
    if sys.argv[:1] != ["-m"]:
        raise
    exec("")  # see main() in __main__.py
    sys.exit(130)

__all__ = ["Classifier", "Prediction", "VerifyReport", "load", "verify"]
