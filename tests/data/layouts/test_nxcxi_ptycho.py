import h5py
import numpy as np
import pytest
from layoutkit import BEAM, COLUMNS, ROWS, SIDE, require_read, truth

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

DETECTOR = "entry_1/instrument_1/detector_1"
MOTORS = "entry_1/sample_1/transformations"
GAP, DEAD, FOR_PEOPLE = 1, 2, 1 << 16


def put(file, at, value, units=None, **attributes):
    """A dataset in place of what is there, with its unit."""
    if at in file:
        del file[at]
    file[at] = value
    if units is not None:
        attributes["units"] = units
    file[at].attrs.update(attributes)


def write(path, wrote, *, raster=(3, 4)):
    """A raster as Diamond writes it, and the virtual dataset that CXI asks for."""
    ny, nx = raster
    # Of all pixels that are bad the hot one is not in the mask; a bit above the sixteenth says nothing bad.
    mask = np.where(wrote.bad, GAP, FOR_PEOPLE).astype(np.uint32)
    mask[5, 40] = 0
    with h5py.File(path, "w") as file:
        put(file, "cxi_version", 160)
        put(file, "entry_1/definition", "NXcxi_ptycho")
        put(file, "entry_1/instrument_1/source_1/energy", 3.0, "GeV")
        put(file, "entry_1/instrument_1/beam_1/energy", wrote.energy_ev / 1e3, "keV")
        frames = wrote.stored(gap=65535).astype(np.uint16).reshape(ny, nx, ROWS, COLUMNS)
        put(file, f"{DETECTOR}/data", frames)
        layout = h5py.VirtualLayout((ny * nx, ROWS, COLUMNS), np.uint16)
        for line in range(ny):
            source = h5py.VirtualSource(".", f"/{DETECTOR}/data", (ny, nx, ROWS, COLUMNS))
            layout[line * nx : (line + 1) * nx] = source[line]
        file.create_virtual_dataset("entry_1/data_1/data", layout)
        put(file, f"{DETECTOR}/distance", wrote.distance_m * 1e3, "mm")
        put(file, f"{DETECTOR}/x_pixel_size", wrote.detector_pixel_m * 1e6, "um")
        put(file, f"{DETECTOR}/y_pixel_size", wrote.detector_pixel_m * 1e6, "um")
        put(file, f"{DETECTOR}/beam_center_x", BEAM[1] * wrote.detector_pixel_m, "m")
        put(file, f"{DETECTOR}/beam_center_y", BEAM[0] * wrote.detector_pixel_m, "m")
        put(file, f"{DETECTOR}/pixel_mask", mask)
        rows, columns = wrote.positions_m.T.reshape(2, ny, nx)
        put(file, f"{MOTORS}/x", columns * 1e6, "um", vector=[1.0, 0, 0])
        put(file, f"{MOTORS}/y", rows * 1e3, "mm", vector=[0, 1.0, 0])
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "i08-1-2121.nxs", truth())


def test_a_raster_with_the_photon_energy_of_its_beam(path):
    scan = require_read(path, truth())
    assert scan.layout == "nxcxi_ptycho"
    assert scan.found["frames"].endswith("detector_1/data")


def test_the_virtual_dataset_alone_will_do(path):
    with h5py.File(path, "r+") as file:
        file.move(f"{DETECTOR}/data", "raw")
        layout = h5py.VirtualLayout((12, ROWS, COLUMNS), np.uint16)
        for line in range(3):
            layout[line * 4 : line * 4 + 4] = h5py.VirtualSource(".", "/raw", (3, 4, ROWS, COLUMNS))[line]
        del file["entry_1/data_1/data"]
        file.create_virtual_dataset("entry_1/data_1/data", layout)
    require_read(path, truth())


def test_motors_that_say_along_what_they_move(path):
    with h5py.File(path, "r+") as file:
        values = truth().positions_m
        for name in ("x", "y"):
            del file[MOTORS][name]
        put(file, f"{MOTORS}/stage_v", -values[:, 0] * 1e9, "nm", vector=[0, -2.0, 0])
        put(file, f"{MOTORS}/stage_h", -values[:, 1], "m", vector=[-1.0, 0, 0])
        put(file, f"{MOTORS}/theta", 12.0, "deg", vector=[0, 1.0, 0], transformation_type="rotation")
    require_read(path, truth())


def test_axes_of_a_raster_that_are_written_down_once(path):
    rows, columns = np.array([0.0, 2, 4]), np.array([1.0, 2, 3, 4])
    with h5py.File(path, "r+") as file:
        put(file, f"{MOTORS}/x", columns, "um")
        put(file, f"{MOTORS}/y", rows, "um")
    scan = open_scan(path, reading=ScanReading(crop=SIDE))
    np.testing.assert_allclose(scan.positions_m[:5] * 1e6, [(0, 1), (0, 2), (0, 3), (0, 4), (2, 1)])


def test_without_motors_the_translation_counts_as_in_cxi(path):
    with h5py.File(path, "r+") as file:
        del file[MOTORS]
        moved = np.zeros((12, 3))
        moved[:, :2] = truth().positions_m[:, ::-1]
        put(file, f"{DETECTOR}/translation", moved * 1e6, "um")
    require_read(path, truth())


WRONG = {
    "no photon energy": (lambda f: f.__delitem__("entry_1/instrument_1/beam_1/energy"), r"energy None eV"),
    "an energy in joule without unit": (
        lambda f: put(f, "entry_1/instrument_1/beam_1/energy", 8_000.0),
        r"photon energy is 4\.99.*check its unit",
    ),
    "a unit that is none": (
        lambda f: put(f, f"{DETECTOR}/distance", 1.0, "fathom"),
        r"distance is in 'fathom'",
    ),
    "pixels that are no squares": (
        lambda f: put(f, f"{DETECTOR}/x_pixel_size", 55.0, "um"),
        r"only square ones",
    ),
    "a beam outside": (lambda f: put(f, f"{DETECTOR}/beam_center_x", 52.5, "pixel"), r"beam is said to hit"),
    "three motors": (
        lambda f: put(f, f"{MOTORS}/z2", np.zeros(12), "m", vector=[0.1, 0, 1.0]),
        r"x, y, z2, which move across the beam; there must be two",
    ),
    "a vector of two": (
        lambda f: put(f, f"{MOTORS}/x", np.zeros(12), "m", vector=[1.0, 0]),
        r"attribute vector of .*/x is",
    ),
    "too few positions": (
        lambda f: put(f, f"{MOTORS}/x", np.zeros(11), "m"),
        r"positions of shapes \(3, 4\)",
    ),
    "no positions": (lambda f: f.__delitem__(MOTORS), r"there is no dataset .*translation"),
    "a mask of another shape": (
        lambda f: put(f, f"{DETECTOR}/pixel_mask", np.zeros((3, 3), np.uint32)),
        r"pixel_mask is a mask of shape \(3, 3\)",
    ),
    "frames of five axes": (
        lambda f: put(f, f"{DETECTOR}/data", np.zeros((1, 2, 2, 4, 4), np.uint16)),
        r"a scan needs real counts",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(path, case):
    change, words = WRONG[case]
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ScanError, match=words):
        open_scan(path, reading=ScanReading(crop=SIDE))
