"""A reconstruction in a file of its own, of ptychodus and of NSLS-II, for scans of several layouts."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from labelled import SHAPE, object_image, require_label, square
from layoutkit import SIDE, truth
from real_data import real_data
from test_ptychoshelves import write as write_pair
from test_ptyd import write as write_ptyd

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

MIDDLE = (3e-7, -5e-7)
"""Where the middle of the object lies, m."""


def product(path, wrote, image, *, frames=None, centre=MIDDLE, attributes=None, **more):
    """A product of ptychodus. frames: those that it has positions of. more: datasets instead of those."""
    numbers = np.arange(len(wrote.counts)) if frames is None else np.array(frames)
    rows, columns = (wrote.positions_m[numbers] + centre).T
    fields = {
        "object": image[None],
        "probe": np.ones((1, 2, SIDE, SIDE), np.complex64),
        "probe_position_indexes": numbers,
        "probe_position_x_m": columns,
        "probe_position_y_m": rows,
        "object_layer_spacing_m": np.zeros(0),
        "loss_values": np.zeros(3),
    }
    pixel = wrote.object_pixel_m
    placed = {
        "pixel_width_m": pixel,
        "pixel_height_m": pixel,
        "center_y_m": centre[0],
        "center_x_m": centre[1],
    }
    with h5py.File(path, "w") as file:
        file.attrs["probe_energy_eV"] = wrote.energy_ev
        file.attrs["detector_object_distance_m"] = wrote.distance_m
        for name, value in (fields | more).items():
            if value is not None:
                file[name] = value
        for name, value in (placed | (attributes or {})).items():
            if "object" in file and value is not None:
                file["object"].attrs[name] = value
    return path


def nsls2(path, wrote, image, **more):
    """What programs of NSLS-II save."""
    fields = {
        "obj": image,
        "prb": np.ones((SIDE, SIDE), np.complex64),
        "pos_xy": wrote.positions_m[:, ::-1].T * 1e6,
        "det_dist": wrote.distance_m * 1e6,
        "energy": wrote.energy_ev / 1e3,
        "img_pixel_size_x": wrote.object_pixel_m,
        "img_pixel_size_y": wrote.object_pixel_m,
    }
    with h5py.File(path, "w") as file:
        for name, value in (fields | more).items():
            if value is not None:
                file[name] = value
    return path


def off(wrote):
    """A scan whose own positions are not those that it was reconstructed with."""
    return replace(wrote, positions_m=wrote.positions_m * 1.1)


BESIDE = ScanReading(reconstruction="{stem}_product.h5")


def test_a_product_is_the_label_of_a_scan_and_its_positions_count(tmp_path):
    wrote, image = truth(), object_image()
    path = write_ptyd(tmp_path / "a.ptyd", off(wrote))
    product(tmp_path / "a_product.h5", wrote, image)
    scan = open_scan(path, reading=BESIDE)
    assert (scan.layout, scan.frame_shape, scan.object_shape) == ("ptyd", (SIDE, SIDE), SHAPE)
    require_label(scan, wrote, image)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m + MIDDLE, atol=1e-15)
    good = scan.good_pixels
    np.testing.assert_array_equal(scan.frames(range(12))[:, good], square(wrote)[:, good])
    assert scan.found["positions"] == "a_product.h5, those that it was reconstructed with"
    assert scan.found["object"] == "a_product.h5: /object"
    assert [each.name for each in scan.others] == ["a_product.h5"]


def test_energy_and_distance_may_be_those_of_the_product(tmp_path):
    wrote, image = truth(), object_image()
    path = write_ptyd(tmp_path / "a.ptyd", wrote, meta_energy=None, meta_distance=None)
    product(tmp_path / "a_product.h5", wrote, image)
    scan = open_scan(path, reading=BESIDE)
    assert (scan.energy_ev, scan.distance_m) == (wrote.energy_ev, wrote.distance_m)
    assert scan.found["energy"] == "a_product.h5"


def test_positions_of_some_frames_belong_to_those_by_their_numbers(tmp_path):
    wrote, image = truth(), object_image()
    path = write_pair(tmp_path, off(wrote), dp=square(wrote))
    frames = [1, 2, 5, 7, 9, 10, 11]
    product(tmp_path / "data_roi0_dp_product.h5", wrote, image, frames=frames)
    told = ScanReading(reconstruction="{stem}_product.h5", distance_m=1.5, detector_pixel_m=75e-6)
    scan = open_scan(path, reading=told)
    assert scan.left_out["frames without a place in the reconstruction"] == 5
    require_label(scan, wrote, image, frames=np.array(frames))
    np.testing.assert_array_equal(scan.frames([0, 6]), square(wrote)[[1, 11]])


def test_positions_without_numbers_that_are_not_as_many_do_not_count(tmp_path):
    wrote, image = truth(), object_image()
    path = write_ptyd(tmp_path / "a.ptyd", wrote)
    x_and_y = {name: np.zeros(5) for name in ("probe_position_x_m", "probe_position_y_m")}
    product(tmp_path / "a_product.h5", wrote, image, centre=(0, 0), probe_position_indexes=None, **x_and_y)
    scan = open_scan(path, reading=BESIDE)
    require_label(scan, wrote, image)
    assert "5 positions do not count: there are 12 frames" in scan.found["object"]


def test_an_nsls2_product_is_a_label_with_the_scan_in_its_middle(tmp_path):
    wrote, image = truth(), object_image()
    path = write_ptyd(tmp_path / "a.ptyd", off(wrote))
    nsls2(tmp_path / "a_product.h5", wrote, image)
    scan = open_scan(path, reading=BESIDE)
    np.testing.assert_array_equal(scan.object(), image)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m, atol=1e-15)
    reach = (scan.positions_px.min(axis=0) + scan.positions_px.max(axis=0)) / 2
    np.testing.assert_allclose(reach, np.array(SHAPE) / 2)
    assert scan.object_pixel_m == pytest.approx(wrote.object_pixel_m)


@pytest.mark.parametrize(("write", "name"), [(product, "ptychodus_product"), (nsls2, "nsls2_product")])
@pytest.mark.parametrize("layout", [None, "by its name"])
def test_a_product_alone_says_that_it_holds_no_frames(tmp_path, write, name, layout):
    path = write(tmp_path / "a_product.h5", truth(), object_image())
    with pytest.raises(
        ScanError, match=rf"is a reconstruction \({name}.*ScanReading\(reconstruction='a_product"
    ):
        open_scan(path, layout and name)


def test_the_real_product_says_so_too_and_is_a_label():
    path = real_data("layout_samples/ptychodus_product_metadata_250_truePos.hdf5")
    with pytest.raises(ScanError, match="holds no frames"):
        open_scan(path)


def test_the_real_product_places_961_frames(tmp_path):
    path = real_data("layout_samples/ptychodus_product_metadata_250_truePos.hdf5")
    with h5py.File(
        tmp_path / "dp_250_dp.h5", "w"
    ) as file:  # its frames are not public: these are none of them
        file.create_dataset("dp", (961, 256, 256), np.uint16, chunks=(1, 256, 256), fillvalue=7)
    with h5py.File(tmp_path / "dp_250_para.h5", "w") as file:
        file["ppX"] = file["ppY"] = np.zeros(961)
    reading = ScanReading(reconstruction=str(path), roots=[str(path.parent)])
    scan = open_scan(tmp_path / "dp_250_dp.h5", reading=reading)
    assert (len(scan), scan.object_shape, scan.frame_shape) == (961, (415, 415), (256, 256))
    assert scan.object_pixel_m == pytest.approx(25.83e-9, rel=1e-3)
    corners = scan.positions_px - 128
    assert corners.min() >= 0
    assert corners.max() <= 415 - 256


def test_a_label_that_is_not_there_yet_is_waited_for(tmp_path):
    path = write_ptyd(tmp_path / "a.ptyd", truth())
    with pytest.raises(NotYetError, match=r"a_product.h5"):
        open_scan(path, reading=BESIDE)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"probe_position_y_m": np.zeros(11)}, "11 positions, /probe_position_x_m 12"),
        ({"probe_position_indexes": np.arange(11)}, "11 numbers; there must be as many of each"),
        ({"probe_position_indexes": np.zeros(12, int)}, "says of 1 frames where they lie, with 12 positions"),
        ({"probe_position_indexes": np.arange(1, 13)}, "frames 1 to 12, but .* has frames 0 to 11"),
        ({"probe_position_y_m": np.full(12, np.nan)}, "not finite"),
        ({"attributes": {"pixel_width_m": 0.0}}, "pixel_width_m of /object is 0"),
        ({"attributes": {"pixel_height_m": 1e-9}}, "only square"),
        ({"attributes": {"center_x_m": None}}, "the attribute center_x_m of /object is None"),
        ({"probe": None}, "is no reconstruction of a known layout"),
    ],
)
def test_wrong_products_say_what_is_wrong(tmp_path, more, says):
    path = write_ptyd(tmp_path / "a.ptyd", truth())
    product(tmp_path / "a_product.h5", truth(), object_image(), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path, reading=BESIDE)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"pos_xy": np.zeros((12, 2))}, r"/pos_xy is of shape \(12, 2\)"),
        ({"pos_xy": np.full((2, 12), np.nan)}, "finite x and y"),
        ({"img_pixel_size_y": None}, "/img_pixel_size_y is None m"),
        ({"img_pixel_size_y": 1e-9}, "and alike"),
    ],
)
def test_wrong_nsls2_products_say_what_is_wrong(tmp_path, more, says):
    path = write_ptyd(tmp_path / "a.ptyd", truth())
    nsls2(tmp_path / "a_product.h5", truth(), object_image(), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path, reading=BESIDE)


@pytest.mark.parametrize("count", [12, 5])
def test_an_object_of_layers_is_no_label_but_the_scan_is_read(tmp_path, count):
    wrote, image = truth(), object_image()
    path = write_ptyd(tmp_path / "a.ptyd", wrote)
    places = {name: np.zeros(count) for name in ("probe_position_x_m", "probe_position_y_m")}
    layers = np.stack([image, image])
    product(tmp_path / "a_product.h5", wrote, image, object=layers, probe_position_indexes=None, **places)
    scan = open_scan(path, reading=replace(BESIDE, crop=SIDE))
    assert not scan.has_object
    assert "has 2 layers" in scan.no_object
    assert (scan.positions_m == 0).all() == (count == len(scan))


def test_a_scan_by_a_mapping_takes_a_product_too(tmp_path):
    wrote, image = truth(), object_image()
    mapping = {
        "frames": {"at": "/counts"},
        "positions": {"row": "/places[:, 0]", "column": "/places[:, 1]", "unit": "um"},
    }
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["counts"], file["places"] = square(wrote), np.zeros((12, 2))
    product(tmp_path / "a_product.h5", wrote, image)
    scan = open_scan(tmp_path / "a.h5", reading=replace(BESIDE, mapping=mapping))
    assert scan.layout == "mapping"
    require_label(scan, wrote, image)
    np.testing.assert_array_equal(scan.frames([2]), square(wrote)[[2]])
