import fcntl
import inspect
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from real_data import real_data

from rehearsal_kit.base.errors import NotYetError, ScanError, SettingsError
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.layouts.registry import LAYOUTS
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.reconstructions import read_measured, read_reconstruction
from rehearsal_kit.data.scans.scan import patch_corners

FRAMES, SIDE = 7, 16
DATA = "/entry_1/instrument_1/detector_1/data"
TRANSLATION = "/entry_1/sample_1/geometry_1/translation"
GEOMETRY = {"energy_ev": 10_000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}


def acquisition(**changes: object) -> Acquisition:
    random = np.random.default_rng(0)
    values = {
        "counts": random.poisson(50, (FRAMES, SIDE, SIDE)).astype(np.uint16),
        "positions_px": random.integers(8, 30, (FRAMES, 2)).astype(float),
        "simulated": True,
        "object": (random.random((40, 44)) + 1j * random.random((40, 44))).astype(np.complex64),
        "probe": np.ones((2, SIDE, SIDE), np.complex64),
        **GEOMETRY,
    }
    return Acquisition(**(values | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_cxi(tmp_path / "scan.cxi", acquisition())


def test_what_is_written_is_read_again(path):
    wrote, scan = acquisition(), open_scan(path)
    assert (len(scan), scan.layout, scan.simulated, scan.has_object) == (FRAMES, "cxi", True, True)
    np.testing.assert_array_equal(scan.frames(range(FRAMES)), wrote.counts)
    np.testing.assert_array_equal(scan.object(), wrote.object)
    assert scan.object_shape == (40, 44)
    np.testing.assert_allclose(scan.positions_px, wrote.positions_px, atol=1e-9)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_px * scan.object_pixel_m)
    assert scan.energy_ev == pytest.approx(10_000)
    # lambda z / (N p), with hc = 1.23984 eV µm
    assert scan.object_pixel_m == pytest.approx(1.23984198e-10 * 2.0 / (SIDE * 172e-6))
    assert scan.good_pixels.all()


def test_without_geometry_positions_are_pixels_and_no_energy_is_invented(tmp_path):
    unknown = dict.fromkeys(GEOMETRY)
    scan = open_scan(write_cxi(tmp_path / "a.cxi", acquisition(**unknown)))
    assert (scan.energy_ev, scan.distance_m, scan.object_pixel_m) == (None, None, None)
    np.testing.assert_array_equal(scan.positions_px, acquisition().positions_px)
    with pytest.raises(ScanError, match=r"a\.cxi.*pixel size is unknown"):
        _ = scan.positions_m
    with h5py.File(tmp_path / "a.cxi") as file:
        assert file[TRANSLATION].attrs["units"] == "pixel"
        assert "energy" not in file["/entry_1/instrument_1"]


def test_half_known_geometry_is_refused():
    with pytest.raises(SettingsError, match="all three or none"):
        acquisition(distance_m=None)


def test_frames_come_in_the_order_asked_for_also_twice(path):
    counts = acquisition().counts
    for order in ([5, 0, 3, 3, 4], np.array([6]), np.array([], np.int64)):
        np.testing.assert_array_equal(open_scan(path).frames(order), counts[np.asarray(order, int)])


@pytest.mark.parametrize("indices", [[7], [-1], [0.5], [[0, 1]], [True]])
def test_frames_that_do_not_exist_are_refused(path, indices):
    with pytest.raises(ScanError, match=r"scan\.cxi: frames"):
        open_scan(path).frames(indices)


def test_no_temporary_file_stays_and_a_watcher_never_matches_it(tmp_path):
    write_cxi(tmp_path / "scan.cxi", acquisition())
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.cxi"]
    with pytest.raises(ScanError, match="cannot be written"):
        write_cxi(tmp_path / "missing" / "scan.cxi", acquisition())


def test_bad_pixels_are_the_median_of_good_neighbours(tmp_path):
    good = np.ones((SIDE, SIDE), bool)
    good[4, 4] = good[0, 0] = False
    counts = acquisition().counts.copy()
    counts[:, 4, 4] = counts[:, 0, 0] = 60_000
    path = write_cxi(tmp_path / "a.cxi", acquisition(counts=counts, good_pixels=good))
    frames, around = open_scan(path).frames([2]), counts[2, 2:7, 2:7].ravel()
    assert frames[0, 4, 4] == np.median(np.delete(around, 12))
    assert frames[0, 0, 0] == np.median(counts[2, :3, :3].ravel()[1:])
    assert open_scan(path).good_pixels.sum() == SIDE**2 - 2


def test_a_wide_gap_is_filled_to_its_middle(tmp_path):
    good = np.ones((SIDE, SIDE), bool)
    good[:, 3:13] = False
    counts = np.where(good, 9, 0).astype(np.uint16) * np.ones((FRAMES, 1, 1), np.uint16)
    path = write_cxi(tmp_path / "a.cxi", acquisition(counts=counts, good_pixels=good))
    assert (open_scan(path).frames([0]) == 9).all()


def test_pixels_that_only_have_signal_are_good(path):
    with h5py.File(path, "a") as file:
        mask = np.full((SIDE, SIDE), 0x1000, np.uint32)
        mask[1, 2] |= 0x8
        file["/entry_1/instrument_1/detector_1/mask"] = mask
    assert np.argwhere(~open_scan(path).good_pixels).tolist() == [[1, 2]]


def replace(path: Path, at: str, values: object) -> None:
    with h5py.File(path, "a") as file:
        attributes = dict(file[at].attrs)
        del file[at]
        file[at] = values
        file[at].attrs.update(attributes)


@pytest.mark.parametrize(("value", "says"), [(np.nan, "nan"), (np.inf, "inf"), (-3, "-3")])
def test_impossible_counts_name_file_dataset_and_frame(path, value, says):
    counts = acquisition().counts.astype(np.float32)
    counts[5, 1, 2] = value
    replace(path, DATA, counts)
    scan = open_scan(path)
    scan.frames([0, 1, 4, 6])
    with pytest.raises(
        ScanError, match=rf"scan\.cxi: frame 5 of /entry_1/data_1/data has {says}.*row 1, column 2"
    ):
        scan.frames([6, 5, 0])


def test_impossible_counts_in_bad_pixels_do_not_matter(path):
    counts = acquisition().counts.astype(np.float32)
    counts[:, 1, 2] = np.nan
    replace(path, DATA, counts)
    with h5py.File(path, "a") as file:
        file["/entry_1/instrument_1/detector_1/mask"] = np.eye(SIDE, k=1, dtype=np.uint32)
    assert np.isfinite(open_scan(path).frames(range(FRAMES))).all()


def test_a_damaged_chunk_names_its_frame(path):
    with h5py.File(path) as file:
        chunk = file[DATA].id.get_chunk_info(4)
    with path.open("r+b") as plain:
        plain.seek(chunk.byte_offset)
        plain.write(b"\xff" * chunk.size)
    scan = open_scan(path)
    scan.frames([0, 1, 2, 3, 5, 6])
    with pytest.raises(ScanError, match=r"scan\.cxi: frame 4 of /entry_1/data_1/data cannot be read"):
        scan.frames(range(FRAMES))


def test_files_that_are_no_scans_say_why(tmp_path, path):
    (tmp_path / "text.h5").write_text("position,counts\n")
    (tmp_path / "empty.cxi").touch()
    whole = path.read_bytes()
    (tmp_path / "half.cxi").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name, says in {
        "nothing.cxi": "there is no such file",
        "text.h5": "not an HDF5 file",
        "empty.cxi": "empty",
        "half.cxi": "truncated.*not finished",
        "other.h5": "no known layout.*cxi",
    }.items():
        with pytest.raises(ScanError, match=rf"{name}: .*{says}"):
            open_scan(tmp_path / name)
    with pytest.raises(ScanError, match=r"'nexus' is unknown; known are: cxi"):
        open_scan(path, layout="nexus")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_named_where_one_is_chosen_and_where_none_is_recognised(tmp_path, name):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    assert f'"{name}"' in inspect.getdoc(open_scan)
    with pytest.raises(ScanError, match=rf"unknown; known are: .*\b{name}\b"):
        open_scan(tmp_path / "other.h5", layout="nexus")
    with pytest.raises(
        ScanError, match=rf"no known layout .*\b{name}\b.* inspect .*other\.h5 --mapping-draft"
    ):
        open_scan(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("at", "values", "says"),
    [
        (TRANSLATION, np.zeros((FRAMES - 1, 3)), "7 frames and 6 positions"),
        (TRANSLATION, np.zeros((FRAMES, 2)), r"translation is of shape \(7, 2\); it must be \(frame, 3\)"),
        (TRANSLATION, [b"abc"] * FRAMES, "translation is .*must hold numbers"),
        ("/entry_1/instrument_1/detector_1/basis_vectors", np.zeros((2, 3)), "no vector may be zero"),
        (
            "/entry_1/instrument_1/detector_1/distance",
            [1.0, 2.0],
            r"distance holds \[1\. 2\.\]; it must be one number",
        ),
        ("/entry_1/instrument_1/detector_1/x_pixel_size", 1e-4, "only square"),
        (TRANSLATION, np.full((FRAMES, 3), np.nan), "not finite"),
        (DATA, np.zeros((SIDE, SIDE)), r"data is float64 of shape \(16, 16\)"),
        ("/entry_1/instrument_1/source_1/energy", 10_000.0, "joule"),
        ("/entry_1/instrument_1/detector_1/distance", 2e9, "object pixel"),
    ],
)
def test_wrong_datasets_are_named(path, *, at, values, says):
    replace(path, at, values)
    with pytest.raises(ScanError, match=rf"scan\.cxi: .*{says}"):
        open_scan(path)


@pytest.mark.parametrize("at", [DATA, TRANSLATION])
def test_missing_datasets_are_named(path, at):
    with h5py.File(path, "a") as file:
        del file[at]
    with pytest.raises(ScanError, match=rf"scan\.cxi: there is no dataset .*{at.rsplit('/', 1)[1]}"):
        open_scan(path)


@pytest.fixture
def elsewhere(tmp_path_factory) -> Path:
    """A folder that is none of the scan's."""
    return tmp_path_factory.mktemp("elsewhere")


def moved(path: Path, at: str, there: Path) -> None:
    """Move a dataset into another file, and leave a link to it in its place."""
    with h5py.File(path, "a") as file, h5py.File(there, "a") as other:
        file.copy(at, other, "x")
        del file[at]
        file[at] = h5py.ExternalLink(there, "/x")


@pytest.mark.parametrize("at", [DATA, TRANSLATION, "/entry_1/image_1/data"])
def test_a_link_leads_nowhere_but_to_folders_that_are_allowed(path, tmp_path, elsewhere, at):
    before = open_scan(path)
    counts, image = before.frames(range(FRAMES)), before.object()
    moved(path, at, elsewhere / "secret.h5")
    with pytest.raises(ScanError, match=rf"secret\.h5, which lies in none .*roots=\['{elsewhere}'\]"):
        open_scan(path)
    (tmp_path / "near.h5").symlink_to(elsewhere / "secret.h5")
    with h5py.File(path, "a") as file:
        del file[at]
        file[at] = h5py.ExternalLink("near.h5", "/x")
    with pytest.raises(ScanError, match=r"secret\.h5, which lies in none"):
        open_scan(path)
    after = open_scan(path, reading=ScanReading(roots=[str(elsewhere)]))
    assert after.others == (elsewhere / "secret.h5",)
    np.testing.assert_array_equal(after.frames(range(FRAMES)), counts)
    np.testing.assert_array_equal(after.positions_px, before.positions_px)
    np.testing.assert_array_equal(after.object(), image)


def test_a_link_to_a_file_beside_it_is_followed_and_one_to_a_missing_file_is_waited_for(path, tmp_path):
    counts = open_scan(path).frames(range(FRAMES))
    moved(path, DATA, tmp_path / "data.h5")
    np.testing.assert_array_equal(open_scan(path).frames(range(FRAMES)), counts)
    (tmp_path / "data.h5").rename(tmp_path / "gone.h5")
    with pytest.raises(NotYetError, match=r"data\.h5: there is no such file"):
        open_scan(path)


def test_a_virtual_dataset_is_read_if_all_of_its_sources_may_be(path, tmp_path, elsewhere):
    counts = open_scan(path).frames(range(FRAMES))
    parts = [tmp_path / "first.h5", elsewhere / "second.h5"]
    layout = h5py.VirtualLayout((FRAMES, SIDE, SIDE), np.uint16)
    for part, place in zip(parts, (slice(0, 4), slice(4, FRAMES)), strict=True):
        with h5py.File(part, "w") as other:
            other["x"] = counts[place].astype(np.uint16)
        layout[place] = h5py.VirtualSource(part, "x", (place.stop - place.start, SIDE, SIDE))
    with h5py.File(path, "a") as file:
        del file[DATA]
        file.create_virtual_dataset(DATA, layout)
    with pytest.raises(ScanError, match=r"second\.h5, which lies in none"):
        open_scan(path)
    reading = ScanReading(roots=[str(elsewhere)])
    np.testing.assert_array_equal(open_scan(path, reading=reading).frames(range(FRAMES)), counts)
    with h5py.File(parts[1], "a") as other:
        other.move("x", "y")
    with pytest.raises(ScanError, match=r"data takes its data from x of .*second\.h5, which has no such"):
        open_scan(path, reading=reading)
    parts[1].unlink()
    with pytest.raises(NotYetError, match=r"second\.h5: there is no such file"):
        open_scan(path, reading=reading)


def test_data_in_a_file_that_is_no_hdf5_are_refused(path, tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(FRAMES * SIDE * SIDE * 2))
    with h5py.File(path, "a") as file:
        del file[DATA]
        file.create_dataset(
            DATA, (FRAMES, SIDE, SIDE), np.uint16, external=[(tmp_path / "secret.bin", 0, h5py.h5f.UNLIMITED)]
        )
    with pytest.raises(ScanError, match="other files"):
        open_scan(path)


def test_what_is_read_at_once_may_not_claim_more_than_its_file_can_warrant(path):
    """Compressed, a megabyte may hold a gigabyte of zeros."""
    with h5py.File(path, "a") as file:
        del file[TRANSLATION]
        file.create_dataset(TRANSLATION, (2**24, 3), np.float64, chunks=(2**20, 3), compression="gzip")
        file["noise"] = np.random.default_rng(0).random(2**15)  # so that its size is no reason to doubt it
    with pytest.raises(ScanError, match=r"translation holds \(16777216, 3\) .* no more than 268435456"):
        open_scan(path)


def test_a_circle_of_links_ends(path):
    with h5py.File(path, "a") as file:
        del file[TRANSLATION]
        file[TRANSLATION] = h5py.SoftLink("/entry_1/data_1/translation")
    with pytest.raises(ScanError, match="circle"):
        open_scan(path)


def test_without_object_or_its_place_there_is_nothing_to_train_on(tmp_path, path):
    scan = open_scan(write_cxi(tmp_path / "bare.cxi", acquisition(object=None)))
    assert not scan.has_object
    assert scan.positions_px.min() == SIDE / 2
    with pytest.raises(ScanError, match=r"bare\.cxi: no reconstruction: nothing to train on"):
        scan.object()
    with h5py.File(path, "a") as file:
        del file["/entry_1/image_1/data"].attrs["origin"]
    with pytest.raises(ScanError, match="where the scan lies"):
        open_scan(path).object()


def test_the_petra_file_reads_with_its_transposed_basis_and_its_mask():
    path = real_data("petra3_p25_nearfield_cxi/PETRAIII_P25_Near_Field_Ptycho.cxi")
    scan = open_scan(path)
    assert (len(scan), scan.frame_shape, scan.has_object, scan.simulated) == (200, (100, 100), False, False)
    assert scan.energy_ev == pytest.approx(12_658, rel=1e-3)
    assert (~scan.good_pixels).sum() == 5
    with h5py.File(path) as file:
        moved = file[TRANSLATION][()]
    # The probe moves by +y over rows and +x over columns.
    np.testing.assert_allclose(scan.positions_m, moved[:, [1, 0]], rtol=1e-6)
    frames = scan.frames([150, 3])
    assert frames.shape == (2, 100, 100)
    assert frames[1].sum() > 1e5


def test_the_minimal_cxi_file_is_refused_for_what_it_lacks():
    path = real_data("layout_samples/minimal.cxi")
    with pytest.raises(ScanError, match="no known layout"):
        open_scan(path)
    with pytest.raises(ScanError, match=r"data is float64 of shape \(50, 100\)"):
        open_scan(path, layout="cxi")


RECONSTRUCTIONS = {
    "cnm_hxn_scan247/epie_reconstruction.npz": ("rpie", 481, 3, 128),
    "als_gold_balls_recon/gold_balls.mat": ("cdtools", 1595, 2, 104),
    "lcls_xpp_run1084_recon/Run1084_recon3_postPC.npz": ("ptychopinn", 1087, 1, 64),
}


@pytest.mark.parametrize("name", RECONSTRUCTIONS)
def test_real_reconstructions_are_recognised(name):
    layout, frames, modes, side = RECONSTRUCTIONS[name]
    found = read_reconstruction(real_data(name))
    assert (found.layout, found.probe.shape) == (layout, (modes, side, side))
    assert found.positions_px.shape == (frames, 2)
    assert found.object.dtype == found.probe.dtype == np.complex64


def test_patches_of_the_gold_balls_cover_what_the_reconstruction_has_seen():
    found = read_reconstruction(real_data("als_gold_balls_recon/gold_balls.mat"))
    corners = patch_corners(found.positions_px, 104)
    seen = np.zeros(found.object.shape, bool)
    for row, column in corners:
        seen[row : row + 104, column : column + 104] = True
    assert (found.object[~seen] == 1).mean() > 0.95
    assert (found.object[seen] == 1).mean() < 0.01


def test_measured_counts_are_centred_masked_and_thinned():
    measured = read_measured(real_data("cnm_hxn_scan247/scan247.npz"))
    assert len(measured.counts) == 395
    assert not measured.simulated
    assert (~measured.good_pixels).sum() == 9
    assert (measured.counts[:, ~measured.good_pixels] == 0).all()
    # The forward model knows its own frame among others: positions, centring and object agree.
    row, column = patch_corners(measured.positions_px, 128)[10]
    waves = np.fft.fft2(measured.probe * measured.object[row : row + 128, column : column + 128])
    model = np.fft.fftshift(np.sqrt((np.abs(waves) ** 2).sum(axis=0)))
    alike = [np.corrcoef(np.sqrt(frame).ravel(), model.ravel())[0, 1] for frame in measured.counts[:30]]
    assert np.argmax(alike) == 10
    assert alike[10] > 0.93


def test_measured_counts_with_another_number_of_positions_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", data=np.zeros((3, 8, 8)), scan_nominal=0, scan_true=0)
    fields = {"object": 0, "probe": 0, "coverage": 0, "good_pixels": 0}
    np.savez(tmp_path / "epie_reconstruction.npz", patch_origin=np.zeros((4, 2)), **fields)
    with pytest.raises(ScanError, match=r"m\.npz: 3 frames, but epie_reconstruction\.npz has 4"):
        read_measured(tmp_path / "m.npz")


def test_what_is_no_reconstruction_says_why(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", object=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.mat").write_text("hello")
    for name, says in {
        "a.npz": "holds x; a reconstruction needs",
        "pickled.npz": "cannot be read",
        "text.npz": "cannot be read",
        "text.mat": "cannot be read",
        "none.npz": "no such file",
    }.items():
        with pytest.raises(ScanError, match=rf"{name}: .*{says}"):
            read_reconstruction(tmp_path / name)


# Markers and masks ---------------------------------------------------------------------------------------

MASK = "/entry_1/instrument_1/detector_1/mask"


def marked(
    path: Path, dtype: object, value: float, *, where: object = np.s_[:, 5:8], bright: int = 1
) -> Path:
    """The scan with a value in some pixels, without a mask."""
    counts = (acquisition().counts * bright).astype(dtype)
    counts[where] = value
    replace(path, DATA, counts)
    return path


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.uint32, 2**32 - 1),
        (np.int32, 2**31 - 1),
        (np.uint64, 2**64 - 1),
        (np.int64, 2**32 - 1),
        (np.float32, 2**32 - 1),
        (np.uint16, 2**16 - 1),
        (np.uint32, 2**16 - 1),
        (np.uint16, 4095),
        (np.int32, -1),
        (np.int16, -2),
        (np.float32, np.nan),
        (">u4", 2**32 - 1),
    ],
)
def test_a_gap_that_the_detector_has_marked_is_bad_without_any_mask(path, dtype, value):
    scan = open_scan(marked(path, dtype, value))
    assert (~scan.good_pixels).sum() == 3 * SIDE
    assert not scan.good_pixels[5:8].any()
    assert scan.frames(range(FRAMES)).max() < 100


def test_unwritten_frames_do_not_hide_a_marker(path):
    counts = acquisition().counts.astype(np.uint32)
    counts[:, 5:8] = 2**32 - 1
    counts[:4] = 0
    replace(path, DATA, counts)
    assert open_scan(path).frames(range(FRAMES)).max() < 100


def test_a_pixel_that_is_marked_in_one_frame_is_filled_in_that_frame(path):
    scan = open_scan(marked(path, np.uint32, 2**32 - 1, where=(3, 4, 4)))
    assert scan.good_pixels.all()
    frames, counts = scan.frames([2, 3]), acquisition().counts
    np.testing.assert_array_equal(frames[0], counts[2])
    assert frames[1, 4, 4] == np.median(np.delete(counts[3, 2:7, 2:7].ravel(), 12))
    dead = open_scan(marked(path, np.uint32, 2**32 - 1, where=3))
    assert not dead.frames([3]).any()  # skipped like a frame without beam


def test_the_largest_number_of_a_narrow_type_is_a_count_where_its_neighbours_are_bright(path):
    spot = np.s_[:, 6:9, 6:9]
    scan = open_scan(marked(path, np.uint16, 2**16 - 1, where=spot, bright=600))
    assert scan.good_pixels.all()
    assert scan.frames([0])[0, 7, 7] == 2**16 - 1
    with pytest.raises(ScanError, match=r"65535 at row 6, column 6 in every frame.*write a mask"):
        open_scan(marked(path, np.uint16, 2**16 - 1, where=spot, bright=100))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.uint64, np.float32])
def test_masks_of_any_type_are_understood(path, dtype):
    mask = np.zeros((SIDE, SIDE), dtype)
    mask[1, 2] = 1
    with h5py.File(path, "a") as file:
        file[MASK] = mask
    assert np.argwhere(~open_scan(path).good_pixels).tolist() == [[1, 2]]


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_a_mask_that_is_the_wrong_way_round_is_refused(path, dtype):
    mask = np.ones((SIDE, SIDE), dtype)
    mask[1, 2] = 0
    with h5py.File(path, "a") as file:
        file[MASK] = mask
    with pytest.raises(ScanError, match=r"scan\.cxi: .*mask .*write 1 - mask"):
        open_scan(path)


# The door ------------------------------------------------------------------------------------------------


def test_a_tiny_file_cannot_claim_terabytes(path):
    with h5py.File(path, "a") as file:
        del file[DATA]
        file.create_dataset(DATA, (10**6, 2048, 2048), np.uint32, chunks=(1, 2048, 2048))
    with pytest.raises(ScanError, match=r"scan\.cxi: .* says that it holds \(1000000, 2048, 2048\)"):
        open_scan(path)


def test_a_file_that_its_writer_holds_is_not_yet_whole(path):
    with path.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(
            NotYetError, match=r"scan\.cxi: .*still open in the program that writes it"
        ) as raised:
            open_scan(path)
    assert raised.value.held
    open_scan(path)


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (DATA, h5py.Empty("f4"), "without values"),
        (TRANSLATION, np.array(["a"], h5py.string_dtype()), "must hold numbers"),
    ],
)
def test_datasets_of_an_odd_kind_are_refused_in_words(path, at, value, says):
    with h5py.File(path, "a") as file:
        del file[at]
        file[at] = value
    with pytest.raises(ScanError, match=rf"scan\.cxi: .*{says}"):
        open_scan(path)


def test_a_mark_in_another_file_is_not_looked_for(path):
    with h5py.File(path, "a") as file:
        del file["cxi_version"]
        file["cxi_version"] = h5py.ExternalLink("/dev/zero", "/x")
    with pytest.raises(ScanError, match="/dev/zero, which lies in none"):
        open_scan(path)


def test_an_array_cannot_claim_more_than_its_file_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("object.npy", "w") as member:
        header = {"descr": "<c16", "fortran_order": False, "shape": (10**7, 10**7)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(ScanError, match=r"a\.npz: object\.npy says that it holds"):
        read_reconstruction(tmp_path / "a.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ScanError, match="is a named pipe"):
        read_reconstruction(tmp_path / "pipe.npz")
