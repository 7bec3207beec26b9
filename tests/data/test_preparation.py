import numpy as np
import pytest
import torch

from rehearsal_kit.base.errors import ScanError, SettingsError
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.opening import open_scan


def scan_of(tmp_path, counts):
    positions = np.zeros((len(counts), 2))
    return open_scan(
        write_cxi(tmp_path / "a.cxi", Acquisition(counts=counts, positions_px=positions, simulated=True))
    )


@pytest.mark.parametrize(("counts", "transform"), [("raw", np.array), ("sqrt", np.sqrt), ("log1p", np.log1p)])
def test_frames_are_binned_then_transformed_then_scaled(counts, transform):
    frames = np.arange(2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8)
    before = frames.copy()
    made = Preparation(size=4, counts=counts, scale=2.0).apply(frames)
    assert made.shape == (2, 1, 4, 4)
    assert made.dtype == torch.float32
    assert made[1, 0, 2, 3].item() == pytest.approx(transform(frames[1, 4:6, 6:8].sum()) / 2, rel=1e-6)
    np.testing.assert_array_equal(frames, before)


def test_frames_of_the_networks_size_are_not_altered_in_place():
    frames = np.full((1, 4, 4), 9, np.float32)
    assert (Preparation(size=4, scale=1.0).apply(frames) == 3).all()
    assert (frames == 9).all()


def test_the_scale_is_fitted_once_to_frames_with_counts_from_all_over_the_scan(tmp_path):
    counts = np.full((3000, 8, 8), 100, np.uint16)
    counts[:2000] = 0
    counts[2000] = 60_000
    scan = scan_of(tmp_path, counts)
    fitted = Preparation(size=4).fitted(scan)
    assert fitted.scale == pytest.approx(20)
    assert Preparation(size=4, scale=3.0).fitted(scan).scale == 3
    assert fitted.apply(scan.frames([2999])).max().item() == pytest.approx(1)


def test_without_a_scale_nothing_is_prepared(tmp_path):
    with pytest.raises(SettingsError, match="fitted"):
        Preparation(size=4).apply(np.ones((1, 4, 4), np.float32))
    with pytest.raises(ScanError, match=r"a\.cxi: .*next to no counts"):
        Preparation(size=4).fitted(scan_of(tmp_path, np.zeros((3, 8, 8), np.uint16)))


@pytest.mark.parametrize("shape", [(2, 2), (6, 6), (8, 4), (4, 8)])
def test_frames_that_binning_does_not_fit_are_refused(shape):
    with pytest.raises(ScanError, match=f"{shape[0]} x {shape[1]} pixels.*multiple of size 4"):
        Preparation(size=4, scale=1.0).apply(np.ones((1, *shape), np.float32))


def test_a_crop_that_would_change_the_object_pixel_is_refused(tmp_path):
    scan = scan_of(tmp_path, np.ones((3, 16, 16), np.uint16))
    Preparation(size=4, crop=16).require_fit(scan)
    with pytest.raises(ScanError, match=r"a\.cxi: frames are 16 x 16.*crop, 8.*pixel of the object"):
        Preparation(size=4, crop=8).require_fit(scan)


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"size": 2.5}, {"counts": "log"}, {"crop": 100}, {"crop": 32}, {"scale": 0.0}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Preparation(**wrong)
