"""`rehearsal-kit label` as a person types it, and the scans that can be trained on afterwards."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from retrievalkit import counts_of, known_sample, scan_of

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.cli.main import main
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scan_tasks import split_scan
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.layouts.own_label import BESIDE
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.scan import patch_corners
from rehearsal_kit.record.commands import Arrived

SIDE = 16
LABELLED = ScanReading(reconstruction=BESIDE)


def patches(image, positions_px):
    """Phases (frame, row, column) around positions, each without its mean."""
    corners = patch_corners(positions_px, SIDE)
    found = np.stack([np.angle(image[row : row + SIDE, column : column + SIDE]) for row, column in corners])
    return found - found.mean(axis=(1, 2), keepdims=True)


def test_a_scan_without_object_can_be_trained_on_once_it_has_a_label(tmp_path, capsys):
    sample = known_sample()
    raw = scan_of(tmp_path, sample)
    assert not raw.has_object
    options = ("--epochs", "8", "--modes", "1")
    assert main(["label", str(raw.path), *options]) == 0
    said = capsys.readouterr().out
    assert "raw_label.h5: error 0.0" in said
    assert "--reconstruction '{stem}_label.h5'" in said
    scan = open_scan(raw.path, reading=LABELLED)
    assert scan.has_object
    assert [each.name for each in scan.others] == ["raw_label.h5"]
    assert len(scan) + scan.left_out.get("frames without a place in the reconstruction", 0) == len(raw)
    numbers = np.arange(len(raw)) if scan.counts.chosen is None else scan.counts.chosen
    np.testing.assert_array_equal(scan.frames(range(len(scan))), raw.frames(numbers))
    made = patches(scan.object(), scan.positions_px).reshape(len(scan), -1)
    known = patches(sample.object, sample.positions_px[numbers]).reshape(len(scan), -1)
    alike = (made * known).sum(axis=1) / np.linalg.norm(made, axis=1) / np.linalg.norm(known, axis=1)
    assert np.median(alike) > 0.98  # the same place of the object, for every frame its own
    preparation = Preparation(size=8, reading=LABELLED)
    experience = split_scan(scan, Arrived(name="raw", path=str(raw.path)), preparation.fitted(scan))
    assert experience.count("training") > 30
    assert main(["label", str(raw.path), *options]) == 0
    assert "has a label, raw_label.h5; --again makes it anew" in capsys.readouterr().out


def test_what_cannot_be_labelled_is_said_and_the_others_are(tmp_path, capsys):
    good = scan_of(tmp_path, known_sample(40)).path
    bad = tmp_path / "bad.cxi"
    bad.write_text("no scan")
    assert main(["label", str(bad), str(good), "--epochs", "1", "--modes", "1"]) == 1
    said = capsys.readouterr().out
    assert "bad.cxi: no label: " in said
    assert "raw_label.h5: error" in said
    assert main(["label", str(good), "--reconstruction", "x.h5"]) == 1
    assert "leave it out" in capsys.readouterr().err


def test_a_scan_with_an_object_needs_no_label(tmp_path, capsys):
    sample = known_sample(40)
    path = write_cxi(
        tmp_path / "done.cxi",
        Acquisition(
            counts=counts_of(sample), positions_px=sample.positions_px, object=sample.object, simulated=True
        ),
    )
    assert main(["label", str(path), "--epochs", "1"]) == 0
    assert "done.cxi: has a reconstruction; --again makes a label all the same" in capsys.readouterr().out
    assert not (tmp_path / "done_label.h5").exists()


def test_a_damaged_label_is_refused(tmp_path):
    path = scan_of(tmp_path, known_sample(40)).path
    assert main(["label", str(path), "--epochs", "1", "--modes", "1"]) == 0
    with h5py.File(tmp_path / "raw_label.h5", "a") as file:
        del file["positions"]
        file["positions"] = np.full((40, 2), np.nan)
    with pytest.raises(ScanError, match=r"raw_label\.h5: its object .* finite \(frame, 2\)"):
        open_scan(path, reading=LABELLED)
