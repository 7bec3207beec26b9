import numpy as np
import pytest
from labelled import centres_px, object_image
from layoutkit import BEAM, SIDE, require_read, truth
from real_data import real_data

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

PATCH, PIXEL = 12, 1e-7
READING = ScanReading(crop=SIDE, centre=BEAM)


def patches(wrote, image):
    """The part of an object of whole pixels around each position, and those positions in metres."""
    corners = np.floor(centres_px(wrote) - PATCH / 2 + 0.5).astype(int)
    found = [image[row : row + PATCH, column : column + PATCH] for row, column in corners]
    return np.stack(found), (corners + PATCH / 2) * PIXEL


def write(path, wrote, image, **more):
    """The archive of one scan. more: arrays instead of those, None for none."""
    real, position = patches(wrote, image)
    fields = {
        "reciprocal": wrote.stored(gap=-1).astype(np.float32),
        "real": real,
        "position": position,
        "pixelsize": PIXEL,
    } | more
    np.savez(path, **{name: value for name, value in fields.items() if value is not None})
    return path


def test_the_object_is_put_together_from_the_patches_of_the_frames(tmp_path):
    wrote, image = truth(), object_image()
    scan = open_scan(write(tmp_path / "scan007.npz", wrote, image), reading=READING)
    real, position = patches(wrote, image)
    assert (scan.layout, scan.object_pixel_m) == ("ptychonn", PIXEL)
    np.testing.assert_allclose(scan.positions_m, position)
    found = scan.object()
    for patch, (row, column) in zip(real, scan.positions_px, strict=True):
        top, left = round(row - PATCH / 2), round(column - PATCH / 2)
        np.testing.assert_allclose(found[top : top + PATCH, left : left + PATCH], patch, atol=1e-6)


def test_counts_below_zero_are_none(tmp_path):
    wrote = truth()
    frames = wrote.stored(gap=-1).astype(np.int32)
    frames[2, BEAM[0], BEAM[1]] = -5
    scan = open_scan(
        write(tmp_path / "scan007.npz", wrote, object_image(), reciprocal=frames), reading=READING
    )
    assert scan.frames([2])[0, SIDE // 2, SIDE // 2] == 0


def test_without_an_answer_the_object_pixel_may_be_told(tmp_path):
    wrote = truth()
    path = write(
        tmp_path / "scan007.npz", wrote, object_image(), real=None, pixelsize=None, position=wrote.positions_m
    )
    told = ScanReading(crop=SIDE, energy_ev=8_000.0, distance_m=1.5, detector_pixel_m=75e-6)
    require_read(path, wrote, reading=told, centre=False, mask=False)
    with pytest.raises(ScanError, match=r"object_pixel_m=... alone"):
        open_scan(path, reading=READING)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"position": np.zeros((12, 3))}, r"position is of shape \(12, 3\)"),
        ({"position": np.zeros((11, 2))}, "12 frames and 11 positions"),
        ({"position": np.arange(24.0).reshape(12, 2)}, "positions reach over"),
        ({"pixelsize": -1e-8}, "pixelsize is -1e-08"),
        ({"reciprocal": np.zeros((12, 37))}, r"reciprocal is float64 of shape \(12, 37\)"),
    ],
)
def test_wrong_archives_say_what_is_wrong(tmp_path, more, says):
    path = write(tmp_path / "scan007.npz", truth(), object_image(), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path, reading=READING)


@pytest.mark.parametrize(
    "more", [{"real": np.ones((11, 12, 12))}, {"real": np.ones(12)}, {"pixelsize": None}]
)
def test_patches_of_another_kind_are_no_label(tmp_path, more):
    path = write(tmp_path / "scan007.npz", truth(), object_image(), **more)
    told = ScanReading(crop=SIDE, centre=BEAM, energy_ev=8_000.0, distance_m=1.5, detector_pixel_m=75e-6)
    scan = open_scan(path, reading=told)
    assert not scan.has_object
    assert scan.no_object.startswith("real ")


def test_the_real_frames_of_scan_235():
    path = real_data("aps26id_ptychonn_samples/test235_truncated.npz")
    scan = open_scan(path, reading=ScanReading(crop=256, object_pixel_m=8e-9))
    assert (len(scan), scan.frame_shape) == (20, (256, 256))
    assert scan.centre_px == pytest.approx((255, 258), abs=2.5)
    assert scan.object_pixel_m == pytest.approx(16e-9)
    frame = scan.frames([0])[0]
    assert frame.min() >= 0
    assert frame.max() > 1_000
