"""Scans whose data lie in several files arrive whole, once, and stay what they were."""

from __future__ import annotations

import shutil
import time

import h5py
import numpy as np
import pytest

from rehearsal_kit.base.errors import ScanError, TaskError
from rehearsal_kit.data.folder_order import files_of, is_same_file, require_as_it_arrived, with_digest
from rehearsal_kit.data.folder_watch import FolderWatch
from rehearsal_kit.data.open_experience import Shelf
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.layouts.cxi import DETECTOR
from rehearsal_kit.record.commands import Arrived

SIDE = 16


@pytest.fixture
def path(tmp_path):
    """A scan with its frames in a file beside it, zz_frames.h5."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(8, 49, 4)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    scan = Acquisition(
        counts=random.poisson(50, (len(grid), SIDE, SIDE)).astype(np.uint16),
        positions_px=grid.astype(float),
        simulated=True,
        object=np.exp(1j * random.random((56, 56))).astype(np.complex64),
    )
    path = write_cxi(tmp_path / "scan.cxi", scan)
    with h5py.File(path, "a") as file, h5py.File(tmp_path / "zz_frames.h5", "w") as other:
        file.copy(f"{DETECTOR}/data", other, "x")
        del file[f"{DETECTOR}/data"]
        file[f"{DETECTOR}/data"] = h5py.ExternalLink("zz_frames.h5", "/x")
    return path


@pytest.fixture
def watch():
    made = FolderWatch(interval_s=0.01, settle_s=0.0)
    yield made
    made.close()


def next_of(watch, *, within_s=10.0):
    """The next command; None after so many seconds without one."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := watch.poll():
            return found[0].command
        time.sleep(0.002)
    return None


def arrived_at(path) -> Arrived:
    return with_digest(Arrived(name=path.stem, path=str(path), files=("zz_frames.h5",)))


def test_it_arrives_once_all_of_it_is_there(path, tmp_path, watch):
    (tmp_path / "zz_frames.h5").rename(tmp_path / "later")
    watch.watch(str(tmp_path / "*.cxi"))
    assert next_of(watch, within_s=0.1) is None
    (tmp_path / "later").rename(tmp_path / "zz_frames.h5")
    arrived = next_of(watch)
    assert arrived == arrived_at(path)
    assert files_of(arrived) == [str(path), str(tmp_path / "zz_frames.h5")]
    assert arrived.size == sum(each.stat().st_size for each in (path, tmp_path / "zz_frames.h5"))


def test_its_other_files_are_no_tasks_of_their_own(path, tmp_path, watch):
    watch.watch(str(tmp_path / "*"))
    assert next_of(watch) == arrived_at(path)
    shutil.copy(path, tmp_path / "zzz.cxi")  # what comes after those has come
    assert next_of(watch).name == "zzz"


def test_a_change_of_any_of_its_files_is_seen(path, tmp_path):
    arrived = arrived_at(path)
    experience = Shelf().opened(arrived, Preparation(size=8))
    samples = experience.load("training", np.arange(3))
    assert samples["diffraction"].shape == (3, 1, 8, 8)
    shutil.copytree(tmp_path, copied := tmp_path.parent / f"{tmp_path.name}-copied")
    elsewhere = Arrived(name="scan", path=str(copied / "scan.cxi"), files=arrived.files)
    require_as_it_arrived(Arrived(**{**vars(arrived), "path": elsewhere.path}))
    assert not is_same_file(arrived, with_digest(elsewhere))
    with h5py.File(tmp_path / "zz_frames.h5", "a") as file:
        file["x"][0, 0, 0] += 1
    assert with_digest(arrived).digest != arrived.digest
    with pytest.raises(TaskError, match="is not the file that it was"):
        experience.load("training", np.arange(3))
    (tmp_path / "zz_frames.h5").unlink()
    with pytest.raises(ScanError, match=r"zz_frames\.h5: there is no such file"):
        experience.load("training", np.arange(3))


def test_a_file_alone_has_the_digest_of_its_content(path):
    alone = Arrived(name="scan", path=str(path))
    assert with_digest(alone).digest != arrived_at(path).digest
    assert with_digest(alone).files == ()
