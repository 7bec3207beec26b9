"""Four times as many classes from one set of images: every rotation of a class is a class of its own.

The usual way to longer class-incremental streams without other data (Zhu et al., "Prototype augmentation and
self-supervision for incremental learning", CVPR 2021, section 3.3, there to learn from).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rehearsal_kit.data.labelled_images import Images, LabelledImages, Labels

ROTATIONS = 4
"""Their number: 0, 90, 180 and 270 degrees."""


def rotated_classes(images: LabelledImages, *, training: int, test: int) -> LabelledImages:
    """The first images of every class in four rotations: class k rotated r times is class k + r x classes.

    training, test: images of each class, or all there are where these are fewer.
    """
    count = len(images.classes)
    training_images, training_labels = _rotated(
        images.training_images, images.training_labels, classes=count, most=training
    )
    test_images, test_labels = _rotated(images.test_images, images.test_labels, classes=count, most=test)
    return replace(
        images,
        name=f"{images.name}, rotated",
        training_images=training_images,
        training_labels=training_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=tuple(f"{name}, {90 * turn} degrees" for turn in range(ROTATIONS) for name in images.classes),
    )


def _rotated(images: Images, labels: Labels, *, classes: int, most: int) -> tuple[Images, Labels]:
    """The first images (sample, channel, row, column) of each class in all rotations, and their labels."""
    chosen = np.concatenate([np.flatnonzero(labels == label)[:most] for label in range(classes)])
    turned = [np.rot90(images[chosen], turn, axes=(2, 3)) for turn in range(ROTATIONS)]
    return (
        np.ascontiguousarray(np.concatenate(turned)),
        np.concatenate([labels[chosen] + classes * turn for turn in range(ROTATIONS)]),
    )
