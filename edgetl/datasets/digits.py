"""Digits: 1,797 grey 8 x 8 images of handwritten digits, from scikit-learn."""

from __future__ import annotations

import numpy as np

from edgetl.datasets import DataSet
from edgetl.datasets._arrays import from_arrays
from edgetl.errors import DataError, MissingDependency

NOTES = ("Images: UCI Optical Recognition of Handwritten Digits, as scikit-learn ships them (BSD); grey levels 0..16 "
         "stretched to 0..255.",)


def load(argument: str | None) -> DataSet:
    """The ten digits; no official split.

    Raises:
        MissingDependency: scikit-learn is not installed.
        DataError: an argument was given.
    """
    if argument:
        raise DataError(f"The data set 'digits' takes no argument, found '{argument}'.", hint="Write --data digits.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as problem:
        raise MissingDependency("scikit-learn", extra="dev", purpose="The data set 'digits'") from problem
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    return from_arrays("digits", [str(digit) for digit in range(10)], {None: (images, bunch.target)}, NOTES)
