"""Files of no known layout are read where a mapping says that their fields lie; one is proposed."""

from __future__ import annotations

from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest
from layoutkit import BEAM, COLUMNS, ROWS, SIDE, require_read, truth

from rehearsal_kit.base.errors import ScanError, SettingsError
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scans.doors.scan_file import opened_scan
from rehearsal_kit.data.scans.frames.orientation import CODES, followed_by, oriented, undone
from rehearsal_kit.data.scans.mapping import (
    FramesAt,
    MaskAt,
    NumberAt,
    ObjectAt,
    PositionsAt,
    ScanMapping,
    parted,
    read_mapping,
)
from rehearsal_kit.data.scans.mapping_draft import draft_mapping
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

TOML = """
orientation = 6
dark = "/detector/dark"
flat = "/detector/flat"
monitor = ["/missing", "/ring/current"]
[frames]
at = "/detector/part_*"
[positions]
row = "/stage/points[1]"
column = "/stage/points[0]"
unit = "um"
row_sign = -1
[energy]
at = "/beam@keV"
unit = "keV"
[distance]
value = 1500.0
unit = "mm"
[detector_pixel]
at = "/detector/pixel"
unit = "um"
[mask]
at = "/detector/valid"
good = 1
[centre_row]
at = "/beam/row"
unit = "pixel"
[centre_column]
at = "/beam/column"
unit = "pixel"
"""


@pytest.fixture
def mapping(tmp_path):
    (tmp_path / "mapping.toml").write_text(TOML)
    return read_mapping(tmp_path / "mapping.toml")


def write(path, wrote, *, code=6):
    """A file that no layout knows, of which everything is somewhere else and in another unit."""
    dark = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % 3
    flat = np.where(dark == 1, 2.0, 1.0)
    current = np.where(np.arange(len(wrote.counts)) % 4, 100.0, 200.0)
    stored = wrote.stored(gap=0) * flat * (current / 100)[:, None, None] + dark
    turned = oriented(stored, undone(code))
    with h5py.File(path, "w") as file:
        file["/detector/part_9"], file["/detector/part_10"] = turned[:5], turned[5:]
        file["/detector/dark"] = oriented(dark, undone(code))
        file["/detector/flat"] = oriented(flat, undone(code))
        file["/detector/valid"] = oriented(~wrote.bad, undone(code))
        file["/detector/pixel"] = [[75.0]]
        file["/stage/points"] = np.stack([wrote.positions_m[:, 1], -wrote.positions_m[:, 0]]) * 1e6
        file["/ring/current"] = current
        file.create_group("beam").attrs["keV"] = 8.0
        file["/beam/row"], file["/beam/column"] = map(float, _place_before(BEAM, code))
    return path


def test_everything_may_lie_elsewhere(tmp_path, mapping):
    wrote = truth()
    path = write(tmp_path / "odd.h5", wrote)
    scan = open_scan(path, reading=ScanReading(mapping=mapping, crop=SIDE))
    good = scan.good_pixels
    square = (slice(BEAM[0] - 8, BEAM[0] + 8), slice(BEAM[1] - 8, BEAM[1] + 8))
    np.testing.assert_array_equal(good, ~wrote.bad[square])
    np.testing.assert_allclose(scan.frames(range(12))[:, good], wrote.counts[:, *square][:, good], atol=1e-3)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m, atol=1e-12)
    assert scan.energy_ev == pytest.approx(8_000)
    assert scan.object_pixel_m == pytest.approx(wrote.object_pixel_m)
    assert scan.layout == "mapping"
    assert scan.found["frames"] == "/detector/part_*, 2 datasets"


def _place_before(place, code):
    """Where the corner between pixels lies that a turn of the frame brings to this place."""
    row, column = place
    if code & 2:
        row = ROWS - row
    if code & 1:
        column = COLUMNS - column
    return (column, row) if code & 4 else (row, column)


def test_orientations_are_undone_and_put_together():
    frame = np.arange(12).reshape(3, 4)
    for code in CODES:
        np.testing.assert_array_equal(oriented(oriented(frame, code), undone(code)), frame)
        for after in CODES:
            both = oriented(frame, followed_by(code, after))
            np.testing.assert_array_equal(both, oriented(oriented(frame, code), after))
    assert len({oriented(frame, code).tobytes() for code in CODES}) == len(CODES)


def test_positions_in_a_text_file_beside_the_scan(tmp_path, mapping):
    wrote = truth()
    path = write(tmp_path / "run_0042.h5", wrote, code=0)
    told = PositionsAt(row="1", column="0", unit="nm", file="pos_{number}.csv")
    plain = ScanMapping(frames=mapping.frames, positions=told, mask=mapping.mask)
    lines = ["# x, y", *(f"{column * 1e9:.3f}, {row * 1e9:.3f}" for row, column in wrote.positions_m)]
    (tmp_path / "pos_0042.csv").write_text("\n".join(lines))
    geometry = {"energy_ev": 8_000.0, "distance_m": 1.5, "detector_pixel_m": 75e-6}
    scan = open_scan(path, reading=ScanReading(mapping=plain, crop=SIDE, centre=BEAM, **geometry))
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m, atol=1e-12)
    assert [each.name for each in scan.others] == ["pos_0042.csv"]
    (tmp_path / "pos_0042.csv").write_text("\n".join([*lines, "1, 2, 3"]))
    with pytest.raises(ScanError, match="of \\[2, 3\\] columns"):
        open_scan(path, reading=ScanReading(mapping=plain, crop=SIDE, centre=BEAM, **geometry))


def test_an_object_lies_where_its_centre_is_said_to(tmp_path):
    random = np.random.default_rng(0)
    counts = random.poisson(20, (9, 16, 16)).astype(np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["counts"], file["object"] = counts, np.ones((1, 60, 80), np.complex128)
        file["y"], file["x"] = np.arange(9) * 1e-8, np.arange(9) * 2e-8
    pixel = NumberAt(value=10.0, unit="nm")
    mapping = ScanMapping(
        frames=FramesAt(at="/counts"),
        positions=PositionsAt(row="/y", column="/x"),
        object=ObjectAt(
            at="/object",
            pixel=pixel,
            centre_row=NumberAt(value=0.0, unit="m"),
            centre_column=NumberAt(value=0.08, unit="um"),
        ),
    )
    scan = open_scan(tmp_path / "a.h5", reading=ScanReading(mapping=mapping))
    assert scan.object().shape == (60, 80)
    np.testing.assert_allclose(scan.positions_px[0], (30, 40 - 8))
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), [[1, 2]] * 8)


def test_settings_of_a_run_keep_it(mapping):
    preparation = Preparation(reading=ScanReading(mapping=mapping, roots=["/data"], centre=[1, 2]))
    again = Preparation(**asdict(preparation))
    assert again == preparation
    assert again.scan_reading == preparation.reading
    assert Preparation(crop=128).scan_reading == ScanReading(crop=128)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[frames]", "[frame]"), "the mapping has frame; known are frames, positions"),
        (('unit = "keV"', 'unit = "kV"'), "energy: unit is 'kV'; it must be one of"),
        (("good = 1", "good = 2"), "mask: good is '2'"),
        (("row_sign = -1", "row_sign = 0"), "positions: row_sign is 0; it must be 1 or -1"),
        (("orientation = 6", "orientation = 8"), "orientation is 8; it must be a number from 0 to 7"),
        (("value = 1500.0", 'value = 1500.0\nat = "/x"'), "distance: .* give one of them"),
        (('at = "/detector/part_*"', ""), "frames lacks a part"),
        (("[mask]", "[mask"), "is no TOML"),
        (('row = "/stage/points[1]"', "row = 1"), "row is 1; it must be the path of a dataset"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_named(tmp_path, change, says):
    (tmp_path / "a.toml").write_text(TOML.replace(*change))
    with pytest.raises(SettingsError, match=rf"a\.toml: .*{says}"):
        read_mapping(tmp_path / "a.toml")


def test_parts_of_datasets_and_patterns_are_told_apart():
    assert parted("/x") == ("/x", ())
    assert parted("/x[0]") == ("/x", (0,))
    assert parted("/x[:, 12]") == ("/x", (slice(None), 12))
    assert parted("/x_[0-9]") == ("/x_[0-9]", ())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frames": FramesAt(at="/nowhere")}, "there is no dataset /nowhere with frames"),
        ({"frames": FramesAt(at="/detector/dark")}, r"shape \(37, 52\); a scan needs real counts"),
        ({"positions": PositionsAt(row="/stage/points[7]", column="/ring/current")}, "no part /stage/points"),
        ({"positions": PositionsAt(row="/beam/row", column="/ring/current")}, "1 positions along the rows"),
        ({"mask": MaskAt(at="/ring/current")}, r"a mask of shape \(12,\)"),
        ({"mask": MaskAt(at="/detector/valid", good=0)}, "beam|bad"),
        ({"monitor": "/beam/row"}, "a monitor needs one above zero for each of 12"),
        ({"energy": NumberAt(at="/ring/current", unit="keV")}, "must be one number"),
        ({"energy": NumberAt(value=-8.0, unit="keV")}, "must be a number above zero"),
        ({"distance": NumberAt(value=1500.0, unit="nm")}, "object pixel of .*outside 0.01 nm to 10 µm"),
    ],
)
def test_what_a_file_has_not_is_named(tmp_path, mapping, change, says):
    path = write(tmp_path / "odd.h5", truth(), code=0)
    if "mask" in change and change["mask"].good == 0 and change["mask"].at == ("/detector/valid",):
        with h5py.File(path, "a") as file:
            file["/detector/valid"][...] = True
        says = "marks every pixel as bad; good is 0 there"
    changed = replace(mapping, orientation=0, **change)
    with pytest.raises(ScanError, match=says):
        open_scan(path, reading=ScanReading(mapping=changed, crop=SIDE, centre=BEAM))


def test_a_draft_finds_what_names_shapes_and_units_tell(tmp_path):
    wrote = truth()
    path = tmp_path / "unknown.h5"
    with h5py.File(path, "w") as file:
        file["/run/camera/images"] = wrote.stored()
        file["/run/camera/distance"] = 1500.0
        file["/run/camera/distance"].attrs["units"] = "mm"
        file["/run/camera/x_pixel_size"] = 75.0
        file["/run/camera/x_pixel_size"].attrs["units"] = "um"
        file["/run/photon_energy"] = 8_000.0
        file["/run/motors/x"], file["/run/motors/y"] = wrote.positions_m.T[::-1] * 1e6
        for name in "xy":
            file[f"/run/motors/{name}"].attrs["units"] = "um"
        file["/run/camera/bad_pixels"] = wrote.bad
        file["/run/temperature"] = np.zeros(12)
        file["/loop"] = h5py.SoftLink("/run")
        file["/outside"] = h5py.ExternalLink("/etc/passwd", "/x")
    with opened_scan(path) as file:
        text = draft_mapping(file)
    (tmp_path / "draft.toml").write_text(text)
    reading = ScanReading(mapping=read_mapping(tmp_path / "draft.toml"), crop=SIDE)
    require_read(path, wrote, reading=reading, centre=False)


def test_a_draft_of_a_file_without_frames_is_no_mapping_yet(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    with opened_scan(tmp_path / "a.h5") as file:
        text = draft_mapping(file)
    assert "no dataset with three or four axes" in text
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ScanError, match=r"no dataset /where/the/frames/lie with"):
        open_scan(tmp_path / "a.h5", reading=ScanReading(mapping=read_mapping(tmp_path / "a.toml")))


def test_positions_that_a_layout_has_no_use_for_are_not_passed_over(tmp_path):
    path = tmp_path / "000012.h5"
    with h5py.File(path, "w") as file:
        file["/entry/measurement/eiger1m/frames"] = truth().stored()
        file["/entry_1/data/data"] = file["/entry/measurement/eiger1m/frames"]
        file["/entry_1/data/x"], file["/entry_1/data/y"] = np.arange(24.0).reshape(2, 12)
    (tmp_path / "positions.csv").write_text("0 0\n" * 12)
    with pytest.raises(ScanError, match=r"said to lie in positions\.csv, but the layout diamond has them in"):
        open_scan(path, reading=ScanReading(positions="positions.csv", crop=SIDE, centre=BEAM))
