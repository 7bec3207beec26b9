import numpy as np
import pytest
from labelled import SHAPE, centres_px, object_image, require_label, square
from layoutkit import SIDE, truth
from real_data import real_data

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.reconstructions import read_measured

BESIDE = "epie_reconstruction.npz"


def write(path, wrote, **more):
    """The archive of a scan. more: arrays instead of those, None for none."""
    fields = {
        "data": np.fft.ifftshift(square(wrote), axes=(1, 2)),
        "scan_true": centres_px(wrote) - SIDE / 2,
        "scan_nominal": np.zeros((len(wrote.counts), 2)),
        "probe": np.ones((1, 1, 3, SIDE, SIDE), np.complex64),
    } | more
    np.savez(path, **{name: value for name, value in fields.items() if value is not None})
    return path


def write_reconstruction(path, wrote, image, **more):
    """What lies beside it, in an object in which one frame is not covered."""
    coverage = np.ones(SHAPE)
    row, column = (centres_px(wrote)[4]).astype(int)
    coverage[row, column] = 0
    good = np.ones((SIDE, SIDE), np.uint8)
    good[3, 5] = 0
    fields = {
        "object": image,
        "probe": np.ones((3, SIDE, SIDE), np.complex64),
        "patch_origin": centres_px(wrote) - SIDE / 2,
        "coverage": coverage,
        "good_pixels": np.fft.ifftshift(good),
    } | more
    np.savez(path, **{name: value for name, value in fields.items() if value is not None})


def test_dc_is_at_the_corner_and_positions_are_corners_of_patches(tmp_path):
    wrote = truth()
    scan = open_scan(write(tmp_path / "scan7.npz", wrote))
    assert (scan.layout, scan.frame_shape, scan.has_object) == ("tike", (SIDE, SIDE), False)
    np.testing.assert_array_equal(scan.frames(range(12)), square(wrote))
    wanted = centres_px(wrote) - centres_px(wrote).min(axis=0) + SIDE / 2
    np.testing.assert_allclose(scan.positions_px, wanted)


def test_the_reconstruction_beside_it_is_its_label(tmp_path):
    wrote, image = truth(), object_image()
    write_reconstruction(tmp_path / BESIDE, wrote, image, coverage=None)
    scan = open_scan(write(tmp_path / "scan7.npz", wrote))
    require_label(scan, wrote, image)
    assert np.argwhere(~scan.good_pixels).tolist() == [[3, 5]]
    assert [each.name for each in scan.others] == [BESIDE]


def test_frames_that_are_not_covered_are_left_out(tmp_path):
    wrote, image = truth(), object_image()
    write_reconstruction(tmp_path / BESIDE, wrote, image)
    scan = open_scan(write(tmp_path / "scan7.npz", wrote))
    left = scan.left_out["frames without a place in the reconstruction"]
    assert 1 <= left < 12
    assert len(scan) == 12 - left
    kept = [
        n for n in range(12) if (np.abs(scan.positions_px - centres_px(wrote)[n]) < 1e-6).all(axis=1).any()
    ]
    assert 4 not in kept
    require_label(scan, wrote, image, frames=np.array(kept))
    good = scan.good_pixels
    np.testing.assert_array_equal(scan.frames(range(len(scan)))[:, good], square(wrote)[kept][:, good])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"scan_true": np.zeros((12, 3))}, r"scan_true is of shape \(12, 3\)"),
        ({"scan_true": np.full((12, 2), np.inf)}, "finite rows and columns"),
        ({"scan_true": np.zeros((11, 2))}, "12 frames and 11 positions"),
        ({"data": np.zeros((12, 16))}, r"data is float64 of shape \(12, 16\)"),
    ],
)
def test_wrong_archives_say_what_is_wrong(tmp_path, more, says):
    path = write(tmp_path / "scan7.npz", truth(), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"patch_origin": np.zeros((12, 3))}, r"patch_origin is of shape \(12, 3\)"),
        ({"patch_origin": np.zeros((13, 2))}, "positions of frames 0 to 12, but .* has frames 0 to 11"),
        ({"coverage": np.ones((4, 4))}, r"coverage is float64 of shape \(4, 4\)"),
    ],
)
def test_wrong_reconstructions_say_what_is_wrong(tmp_path, more, says):
    write_reconstruction(tmp_path / BESIDE, truth(), object_image(), **more)
    path = write(tmp_path / "scan7.npz", truth())
    with pytest.raises(ScanError, match=says):
        open_scan(path)


def test_scan_247_reads_as_the_simulated_beamline_converts_it():
    path = real_data("cnm_hxn_scan247/scan247.npz")
    scan, wanted = open_scan(path), read_measured(path)
    assert (len(scan), sum(scan.left_out.values())) == (395, 86)
    np.testing.assert_array_equal(scan.positions_px, wanted.positions_px)
    np.testing.assert_array_equal(scan.good_pixels, wanted.good_pixels)
    np.testing.assert_array_equal(scan.object(), wanted.object)
    good = scan.good_pixels
    np.testing.assert_array_equal(scan.frames([0, 200])[:, good], wanted.counts[[0, 200]][:, good])
    alone = ScanReading(reconstruction=BESIDE)
    assert len(open_scan(path, reading=alone)) == 395
