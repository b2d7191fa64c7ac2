"""The most that is read of a bundle, and why: no sensible bundle meets these limits, and no memory bursts at them."""

from __future__ import annotations

MANIFEST_BYTES = 4 << 20  # the 21,841 labels of ImageNet-21k take 0.6 MB; 4 MB of empty tables 200 MB and a second
DEPTH = 64  # tables within tables: edgetl's own have 8, and what walks them by recursion ends at some hundred
GRAPH_BYTES = (1 << 31) - 1  # a protobuf message, which an ONNX graph is, holds no more
GOLDEN_BYTES = 1 << 30  # 256 photos, the most that `edgetl export --golden` takes, of 4 MB each
GOLDEN_IMAGES = 512
COMPANION_BYTES = 4 << 20  # README.md and recipe.toml, for people
KEY_BYTES = 16 << 10  # of a signature or a key; minisign's comments have 8 kB at most

TEXT = 1000  # characters of a name or a label; they stand in sentences
LABELS = 100_000
VARIANTS = 64  # each is tried against this machine at load
BACKENDS = 16  # of a variant; each is asked whether it can run here
TENSORS = 16  # inputs or outputs of a variant
RANK = 8  # axes of a tensor
SIZE = (1 << 31) - 1  # of an axis
PIXELS = 1 << 24  # of the prepared image: 4096 x 4096, which as float32 RGB takes 201 MB
TEMPERATURE = 1e3  # and no less than its inverse: beyond, every score is 1 or 1/K
FACTOR = 1e6  # scale, mean and std lie between it and its inverse, so that float32 neither overflows nor loses all
PATH_BYTES = 255  # of a file's name in the bundle: what every file system takes
