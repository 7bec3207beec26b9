"""Classes made of rotations: what is in them, and under which label."""

from __future__ import annotations

import numpy as np

from rehearsal_kit.data.labelled_images import LabelledImages
from rehearsal_kit.data.rotated_classes import rotated_classes


def test_every_rotation_of_a_class_is_a_class():
    random = np.random.default_rng(0)
    pixels = random.random((9, 1, 5, 5), dtype=np.float32)
    labels = np.array([0, 1, 0, 1, 1, 0, 0, 1, 0])
    images = LabelledImages(
        name="two",
        training_images=pixels,
        training_labels=labels,
        test_images=pixels[:3],
        test_labels=labels[:3],
        classes=("cat", "dog"),
    )
    found = rotated_classes(images, training=3, test=2)
    assert found.classes == (
        *("cat, 0 degrees", "dog, 0 degrees", "cat, 90 degrees", "dog, 90 degrees"),
        *("cat, 180 degrees", "dog, 180 degrees", "cat, 270 degrees", "dog, 270 degrees"),
    )
    assert np.bincount(found.training_labels).tolist() == [3] * 8
    assert np.bincount(found.test_labels).tolist() == [2, 1] * 4  # all there are, where these are fewer
    assert (found.training_images.dtype, found.training_labels.dtype) == (np.float32, labels.dtype)
    first = {label: found.training_images[found.training_labels == label][0, 0] for label in range(8)}
    for label, turn in ((0, 0), (2, 1), (4, 2), (6, 3)):
        np.testing.assert_array_equal(first[label], np.rot90(pixels[0, 0], turn))
    np.testing.assert_array_equal(first[5], pixels[1, 0, ::-1, ::-1])
