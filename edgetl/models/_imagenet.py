"""Names of ImageNet's classes, from timm's lists."""

from __future__ import annotations

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset


def names(classes: int) -> tuple[tuple[str, ...], ...]:
    """What each class is called: its words, together and one by one, and its WordNet number; empty where none is known.

    Args:
        classes: outputs of a head, by which timm tells the subsets apart.
    """
    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return ()
    known = ImageNetInfo(subset)
    described = (known.index_to_description(place) for place in range(classes))
    return tuple((text, known.index_to_label_name(place), *(word.strip() for word in text.split(",")))
                 for place, text in enumerate(described))
