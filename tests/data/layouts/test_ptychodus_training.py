import h5py
import numpy as np
import pytest
from labelled import SHAPE, centres_px, object_image, require_label, square
from layoutkit import SIDE, truth

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan


def write(path, wrote, image, **more):
    """Frames with their object in one flat file. more: fields instead of those, None for none."""
    places = centres_px(wrote) - 0.5  # ptychodus counts pixels from their middle
    bad = np.zeros((SIDE, SIDE), bool)
    bad[3, 5] = True
    fields = {
        "patterns": square(wrote),
        "bad_pixels": bad,
        "probe": np.ones((2, SIDE, SIDE), np.complex64),
        "object": image[None],
        "probe_position_x_px": places[:, 1],
        "probe_position_y_px": places[:, 0],
        "object_pixel_width_m": wrote.object_pixel_m,
        "object_pixel_height_m": wrote.object_pixel_m,
        "detector_object_distance_m": wrote.distance_m,
        "photon_energy_eV": wrote.energy_ev,
    }
    with h5py.File(path, "w") as file:
        for name, value in (fields | more).items():
            if value is not None:
                file[name] = value
    return path


@pytest.mark.parametrize("layers", [0, 1])
def test_it_is_a_complete_label(tmp_path, layers):
    wrote, image = truth(), object_image()
    more = {} if layers else {"object": image}
    scan = open_scan(write(tmp_path / "train.h5", wrote, image, **more))
    assert (scan.layout, scan.frame_shape, scan.object_shape) == ("ptychodus_training", (SIDE, SIDE), SHAPE)
    require_label(scan, wrote, image)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m, atol=1e-15)
    good = scan.good_pixels
    assert np.argwhere(~good).tolist() == [[3, 5]]
    np.testing.assert_array_equal(scan.frames(range(12))[:, good], square(wrote)[:, good])
    assert scan.detector_pixel_m == pytest.approx(wrote.detector_pixel_m)
    assert (scan.energy_ev, scan.distance_m) == (8_000, 1.5)
    assert scan.object_pixel_m == pytest.approx(wrote.object_pixel_m)


def test_an_object_of_several_layers_is_no_label(tmp_path):
    wrote, image = truth(), object_image()
    scan = open_scan(write(tmp_path / "train.h5", wrote, image, object=np.stack([image, image])))
    assert not scan.has_object
    assert "has 2 layers" in scan.no_object


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"probe_position_y_px": None}, "there is no dataset /probe_position_y_px"),
        ({"probe_position_y_px": np.zeros(11)}, "11 positions and /probe_position_x_px has 12"),
        ({"object_pixel_width_m": None}, "there is no /object_pixel_width_m"),
        ({"object_pixel_width_m": 1e-3, "object_pixel_height_m": 1e-3}, "object pixel of"),
        ({"object_pixel_height_m": 1e-9}, "only square"),
        ({"photon_energy_eV": 0.0}, "photon_energy_eV is 0; it must be a number above zero"),
        ({"object": None}, "there is no dataset /object"),
        ({"patterns": np.zeros((12, 16))}, r"/patterns is float64 of shape \(12, 16\)"),
        ({"patterns": np.zeros((13, 16, 16), np.uint16)}, "13 frames and 12 positions"),
        ({"bad_pixels": np.zeros((5, 5), bool)}, "bad_pixels is bool of shape"),
        ({"bad_pixels": np.ones((16, 16), bool)}, "marks every pixel as bad"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, more, says):
    path = write(tmp_path / "train.h5", truth(), object_image(), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path)
