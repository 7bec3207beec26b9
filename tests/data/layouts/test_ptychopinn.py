import numpy as np
import pytest
from labelled import SHAPE, centres_px, object_image, require_label, square
from layoutkit import SIDE, truth
from real_data import real_data

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading


def write(path, wrote, image, **more):
    """An archive of the older kind: amplitudes, the frames last. more: arrays instead, None for none."""
    rows, columns = centres_px(wrote).T
    fields = {
        "diffraction": np.moveaxis(np.sqrt(square(wrote)), 0, -1),
        "xcoords": columns,
        "ycoords": rows,
        "probeGuess": np.ones((SIDE, SIDE), np.complex128),
        "objectGuess": image,
    } | more
    np.savez_compressed(path, **{name: value for name, value in fields.items() if value is not None})
    return path


def test_amplitudes_with_the_frames_last(tmp_path):
    wrote, image = truth(), object_image()
    scan = open_scan(write(tmp_path / "run.npz", wrote, image))
    assert (scan.layout, scan.frame_shape, scan.object_shape) == ("ptychopinn", (SIDE, SIDE), SHAPE)
    np.testing.assert_allclose(scan.frames(range(12)), square(wrote), rtol=1e-6)
    np.testing.assert_allclose(scan.frames([11, 3]), square(wrote)[[11, 3]], rtol=1e-6)
    require_label(scan, wrote, image)


def test_counts_with_the_frames_first_and_no_object(tmp_path):
    wrote, image = truth(), object_image()
    counts = square(wrote).astype(np.float32)
    path = write(tmp_path / "run.npz", wrote, image, diffraction=None, diff3d=counts, objectGuess=None)
    scan = open_scan(path)
    np.testing.assert_array_equal(scan.frames(range(12)), counts)
    assert not scan.has_object
    assert "no objectGuess" in scan.no_object


def test_a_large_detector_is_cut_around_its_beam(tmp_path):
    wrote, image = truth(), object_image()
    more = {"diffraction": np.moveaxis(wrote.stored(gap=-1).astype(np.int32), 0, -1)}
    scan = open_scan(write(tmp_path / "run.npz", wrote, image, **more))
    good = scan.good_pixels
    np.testing.assert_array_equal(scan.frames(range(12))[:, good], square(wrote)[:, good])
    require_label(scan, wrote, image)


def test_an_archive_without_frames_is_a_label_for_those_of_another_one(tmp_path):
    wrote, image = truth(), object_image()
    write(tmp_path / "run_recon.npz", wrote, image, diffraction=None)
    counts = square(wrote)
    path = write(
        tmp_path / "run.npz", wrote, image, diffraction=counts, objectGuess=None, xcoords=np.zeros(12)
    )
    scan = open_scan(path, reading=ScanReading(reconstruction="{stem}_recon.npz"))
    require_label(scan, wrote, image)
    np.testing.assert_array_equal(scan.frames(range(12)), counts)
    assert scan.found["positions"] == "run_recon.npz, those that it was reconstructed with"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"ycoords": None}, "there is no array ycoords"),
        ({"ycoords": np.zeros(11)}, "11 positions and xcoords has 12"),
        ({"diffraction": np.zeros((5, 5))}, r"diffraction is of shape \(5, 5\) and there are 12 positions"),
        ({"diffraction": np.zeros((12, 16, 12))}, "which axis is that of the frames is not known"),
        ({"diffraction": np.zeros((16, 16, 16))}, "which axis is that of the frames is not known"),
    ],
)
def test_wrong_archives_say_what_is_wrong(tmp_path, more, says):
    path = write(tmp_path / "run.npz", truth(), object_image(), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path)


def test_the_real_reconstruction_says_how_it_is_used():
    path = real_data("lcls_xpp_run1084_recon/Run1084_recon3_postPC.npz")
    with pytest.raises(ScanError, match=r"is a reconstruction \(ptychopinn.*ScanReading\(reconstruction="):
        open_scan(path)
