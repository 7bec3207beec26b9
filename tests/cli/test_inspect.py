"""`rehearsal-kit inspect` as a person types it."""

from __future__ import annotations

import io
import json

import h5py
import numpy as np
import pytest
from PIL import Image

from rehearsal_kit.cli.main import main
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.layouts.registry import LAYOUTS

SIDE = 16


def scan(folder, **changes):
    """A scan of 144 frames over an object of 60 x 60 pixels of 18.0 nm."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(8, 53, 4)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    values = {
        "counts": random.poisson(50, (len(grid), SIDE, SIDE)).astype(np.uint16),
        "positions_px": grid.astype(float),
        "simulated": True,
        "object": np.exp(1j * random.random((60, 60))).astype(np.complex64),
        "energy_ev": 10_000.0,
        "distance_m": 2.0,
        "detector_pixel_m": 860e-6,
    }
    return write_cxi(folder / "scan.cxi", Acquisition(**values | changes))


def told(capsys, *words):
    """What the command prints, which succeeds."""
    assert main(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_everything_that_is_known_is_told_with_its_origin_and_what_would_become_of_it(tmp_path, capsys):
    lines = dict(
        line.split(None, 1) for line in told(capsys, scan(tmp_path), "--size", 8).splitlines() if line.strip()
    )
    assert lines["layout"] == "cxi   [recognised by cxi_version at its root]"
    assert lines["energy"].startswith("10 keV   [/entry_1/instrument_1/source_1/energy]")
    assert lines["frames"].startswith("144 of 16 x 16 uint16   [/entry_1/data_1/data]")
    assert lines["positions"].startswith("over 0.7929 x 0.7929 \u00b5m (rows x columns)")
    assert lines["samples"].endswith("in none")


def test_as_data_it_says_the_same(tmp_path, capsys):
    found = json.loads(told(capsys, scan(tmp_path), "--size", 8, "--json"))
    assert (found["layout"], found["frames"], found["object_shape"]) == ("cxi", 144, [60, 60])
    assert found["object_pixel_m"] == pytest.approx(1.8019e-8, rel=1e-3)
    assert sum(found["samples"].values()) == 144
    assert found["set_aside"] == ""
    bare = json.loads(told(capsys, scan(tmp_path, object=None), "--size", 8, "--json"))
    assert bare["set_aside"] == "no reconstruction: nothing to train on"
    assert bare["samples"] == {}
    large = json.loads(told(capsys, scan(tmp_path), "--json"))
    assert "frames are 16 x 16 pixels" in large["set_aside"]


def test_the_picture_shows_mean_frame_bad_pixels_and_positions(tmp_path, capsys):
    good = np.ones((SIDE, SIDE), bool)
    good[4, 4] = False
    path = scan(tmp_path, good_pixels=good)
    told(capsys, path, "--size", 8, "--plot", tmp_path / "out.png")
    picture = np.asarray(Image.open(io.BytesIO((tmp_path / "out.png").read_bytes())))
    assert picture.shape == (480, 972, 3)
    blue = np.argwhere((picture == (60, 120, 255)).all(axis=-1)) // 30
    assert set(map(tuple, blue.tolist())) == {(4, 4)}
    red = (picture[:, 492:] == (230, 60, 40)).all(axis=-1)
    assert red[8 * 8 - 1 : 8 * 8 + 2, 8 * 8 - 1 : 8 * 8 + 2].all()  # the first position, eight to a pixel
    assert main(["inspect", str(path), "--plot", "out.jpg"]) == 1
    assert "call it OUT.png" in capsys.readouterr().err


def test_of_a_file_that_is_unknown_a_draft_leads_to_what_is_known(tmp_path, capsys):
    path = tmp_path / "unknown.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["frames"] = random.poisson(20, (25, SIDE, SIDE))
        file["pos_y"], file["pos_x"] = np.array(np.divmod(np.arange(25), 5)) * 1e-7
        for name in ("pos_y", "pos_x"):
            file[name].attrs["units"] = "m"
        file["energy"], file["distance"], file["pixel_size"] = 1e4, 2.0, 860e-6
    assert main(["inspect", str(path)]) == 1
    advice = capsys.readouterr().err
    draft = tmp_path / "mapping.toml"
    command = advice.split("`")[3].removeprefix("rehearsal-kit ").replace("mapping.toml", str(draft))
    assert main(command.split()) == 0
    then = capsys.readouterr().out.split(": check it, then rehearsal-kit ")[1]
    assert main(then.split()) == 0
    assert "25 of 16 x 16" in capsys.readouterr().out
    assert main(command.split()) == 1  # never over what a person may have changed
    assert "is there already" in capsys.readouterr().err


def test_what_is_told_of_a_scan_counts_more_than_its_file(tmp_path, capsys):
    told_so = ("--energy-ev", 5_000, "--crop", 8, "--centre", 8, 8, "--orientation", 4, "--size", 8, "--json")
    found = json.loads(told(capsys, scan(tmp_path), *told_so))
    assert found["energy_ev"] == 5_000
    assert found["window"] == [4, 4, 8]
    assert found["orientation"] == 4
    assert found["object_pixel_m"] == pytest.approx(4 * 1.8019e-8, rel=1e-3)


def test_the_layouts_are_listed(capsys):
    lines = told(capsys, "--layouts").splitlines()
    assert [line.split()[0] for line in lines] == list(LAYOUTS)
    assert main(["inspect"]) == 1
    assert "no FILE to inspect" in capsys.readouterr().err
