"""Phase retrieval of simulated scans with known answers, and of a measured one:

python -m pytest -s -m endurance tests/data/test_phase_retrieval.py  # a quarter of an hour of one processor
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from real_data import real_data
from retrievalkit import (
    SIDE,
    WELL_COVERED,
    counts_of,
    fourier_error_of,
    known_sample,
    phase_error_of,
    scan_of,
)
from scipy.ndimage import gaussian_filter

from rehearsal_kit.base.errors import ScanError, SettingsError
from rehearsal_kit.data.labels.ambiguities import phase_error, ramp, settled
from rehearsal_kit.data.labels.cdtools_fit import CdtoolsFit, Found
from rehearsal_kit.data.labels.measured_frames import Measured
from rehearsal_kit.data.labels.phase_retrieval import PhaseRetrieval, Start, retrieve
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.simulated_beamline import Beamline, specimen

SHORT = PhaseRetrieval(epochs=2, modes=1, batch=25)


@pytest.fixture(scope="module")
def sample():
    return known_sample()


@pytest.fixture(scope="module")
def scan(tmp_path_factory, sample):
    return scan_of(tmp_path_factory.mktemp("scan"), sample)


@pytest.fixture(scope="module")
def label(scan):
    """Begun from the frames alone: neither beam nor object nor geometry are known."""
    return retrieve(scan, PhaseRetrieval(modes=1, batch=10, epochs=10))


def test_the_known_object_is_retrieved_from_frames_and_positions_alone(label, scan, sample):
    assert (label.coverage > WELL_COVERED).sum() > 2000, "pixels that are compared"
    assert phase_error_of(label, scan, sample) < 0.05
    assert label.errors[-1] < 0.03 < label.errors[0]
    assert label.pixel_m is None
    np.testing.assert_array_equal(label.positions_px, scan.positions_px - label.origin_px)


def test_the_error_is_that_of_the_amplitudes_that_the_label_stands_for(label, scan):
    """So nothing that was settled afterwards has changed a frame."""
    assert fourier_error_of(label, scan) == pytest.approx(label.errors[-1], rel=0.15)


def test_labels_are_settled_where_covered(label):
    known = label.coverage * label.covered
    size = np.array(label.object.shape)
    assert np.abs(ramp(label.object, known) * size).max() < 0.02, "rad from rim to rim"
    assert np.angle((label.object * known).sum()) == pytest.approx(0, abs=1e-4)
    order = np.argsort(np.abs(label.object), axis=None)
    half = np.searchsorted(np.cumsum(known.ravel()[order]), known.sum() / 2)
    assert np.abs(label.object).ravel()[order][half] == pytest.approx(1, abs=1e-3)
    assert label.coverage.max() == 1


def test_the_same_seed_gives_the_same_bits_and_nothing_else_of_the_process_changes(scan, sample, capfd):
    start, state, threads = Start(probe=sample.probe), torch.get_rng_state(), torch.get_num_threads()
    several = replace(SHORT, modes=2, correct_positions="refine", epochs=3)
    once, again = (retrieve(scan, several, start=start) for _ in range(2))
    for name in ("object", "probe", "coverage", "positions_px"):
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name))
    assert once.errors == again.errors
    other = retrieve(scan, replace(several, seed=1), start=start)
    assert np.abs(other.object - once.object).max() > 1e-3
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")
    assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_it_ends_when_told_or_when_good_enough(scan, sample):
    told = []

    def tell(epoch, error):
        told.append((epoch, error))
        return epoch < 2

    start, settings = Start(probe=sample.probe), replace(SHORT, epochs=50)
    label = retrieve(scan, settings, start=start, tell=tell)
    assert told == [(1, label.errors[0]), (2, label.errors[1])]
    enough = replace(settings, good_enough=label.errors[0])
    assert retrieve(scan, enough, start=start).errors == label.errors[:1]


def test_what_is_counted_in_bad_pixels_changes_nothing(sample):
    good = np.random.default_rng(1).random((SIDE, SIDE)) > 0.05
    counts = counts_of(sample).astype(np.float32)
    found = []
    for value in (0.0, 1e5):
        counts[:, ~good] = value
        measured = Measured(counts=counts, good=good, corners_px=sample.positions_px - SIDE / 2)
        begin = Found(
            object=np.ones(sample.object.shape, np.complex64),
            probe=sample.probe * 1000,
            corners_px=measured.corners_px,
        )
        fit = CdtoolsFit(measured, begin, margin_px=0, batch=25, device=torch.device("cpu"))
        error = fit.epoch(0.05, moves_px=0, generator=torch.Generator().manual_seed(0))
        found.append((error, fit.found().object))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_frames_without_beam_are_left_out(tmp_path, sample):
    counts = counts_of(sample)
    counts[[0, 7]] = 0
    scan = scan_of(tmp_path, sample, counts=counts)
    label = retrieve(scan, SHORT, start=Start(probe=sample.probe))
    np.testing.assert_array_equal(label.positions_px, scan.positions_px - label.origin_px)
    first = np.rint(label.positions_px[0]).astype(int) - SIDE // 2
    assert label.coverage[first[0], first[1]] == 0, "the corner that only the first frame has seen"


def test_wrong_positions_are_corrected(tmp_path, sample):
    wrong = sample.positions_px + np.random.default_rng(2).normal(0, 1.0, sample.positions_px.shape)
    scan = scan_of(tmp_path, sample, positions_px=wrong)
    settings = PhaseRetrieval(modes=1, batch=10, epochs=8, correct_positions="refine")
    label = retrieve(scan, settings, start=Start(probe=sample.probe))

    def spread(positions):
        difference = positions - sample.positions_px
        return (difference - difference.mean(axis=0)).std()

    np.testing.assert_allclose(
        label.positions_px.mean(axis=0) + label.origin_px, scan.positions_px.mean(axis=0)
    )
    assert spread(label.positions_px) < 0.5 * spread(wrong)


def test_a_search_for_positions_can_be_ended_and_is_told_like_the_rest(tmp_path):
    sample = known_sample(frames=30)
    wrong = sample.positions_px + np.random.default_rng(2).normal(0, 2.0, sample.positions_px.shape)
    scan = scan_of(tmp_path, sample, positions_px=wrong)
    settings = replace(SHORT, correct_positions="search")
    start = Start(probe=sample.probe)
    once, again = (
        retrieve(scan, settings, start=start, tell=lambda epoch, error: epoch != 1) for _ in range(2)
    )
    assert len(once.errors) == 1 + settings.epochs, "the search, and then the fit"
    moved = once.positions_px + once.origin_px - scan.positions_px
    assert 0 < np.abs(moved).max() <= SIDE / 4 + 1
    np.testing.assert_array_equal(once.positions_px, again.positions_px)


def test_it_begins_with_what_is_known(scan, sample):
    beam = Start(probe=sample.probe)
    origin = tuple((scan.positions_px - sample.positions_px)[0])
    both = Start(probe=7 * sample.probe, object=sample.object, origin_px=origin)
    scratch, known = (retrieve(scan, replace(SHORT, epochs=1), start=start) for start in (beam, both))
    assert known.errors[0] < 0.9 * scratch.errors[0]


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (Start(probe=np.ones((1, 16, 16), np.complex64)), "the beam to begin with is"),
        (Start(probe=np.full((1, SIDE, SIDE), np.nan, np.complex64)), "must be finite"),
        (
            Start(probe=np.ones((1, SIDE, SIDE), np.complex64), object=np.ones((2, 2)), origin_px=(1e4, 0)),
            "outside",
        ),
        (Start(probe=np.ones((1, SIDE, SIDE), np.complex64), object=np.ones(4)), r"must be \(row, column\)"),
    ],
)
def test_what_does_not_fit_to_begin_with_is_refused(scan, start, said):
    with pytest.raises(SettingsError, match=said):
        retrieve(scan, SHORT, start=start)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"good_enough": 0.0},
        {"good_enough": 2},
        {"modes": 0},
        {"correct_positions": True},
        {"batch": 0},
        {"spread": 1.5},
        {"threads": 0},
        {"seed": -1},
    ],
)
def test_settings_outside_what_is_allowed_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"{next(iter(wrong))} is "):
        PhaseRetrieval(**wrong)


def test_scans_that_cannot_be_retrieved_are_refused(tmp_path):
    sample = known_sample(frames=8)
    with pytest.raises(ScanError, match="patches have to overlap"):
        retrieve(scan_of(tmp_path, sample, positions_px=sample.positions_px * 10), SHORT)
    dark = counts_of(sample)
    dark[2:] = 0
    with pytest.raises(ScanError, match=r"2 of 8 frames have beam"):
        retrieve(scan_of(tmp_path, sample, counts=dark), SHORT)


def test_without_the_library_it_says_what_to_install(scan, monkeypatch):
    monkeypatch.setitem(sys.modules, "cdtools", None)  # what an import of it meets where it is missing
    with pytest.raises(SettingsError, match=r"install rehearsal-kit\[labels\]"):
        retrieve(scan, SHORT)


def test_constant_ramp_and_scale_are_settled_and_change_no_frame():
    random = np.random.default_rng(5)
    wave = np.exp(1j * random.uniform(-0.5, 0.5, (40, 30)))
    weights = random.random(wave.shape)
    rows, columns = np.indices(wave.shape)
    slope = np.array([0.31, -0.17])
    turned = 2.5 * wave * np.exp(1j * (slope[0] * rows + slope[1] * columns + 1.2))
    np.testing.assert_allclose(ramp(turned, weights) - ramp(wave, weights), slope, atol=1e-4)
    assert phase_error(turned, wave, weights) < 1e-3
    probe = random.normal(size=(2, 8, 8)) + 1j * random.normal(size=(2, 8, 8))
    object_, beam = settled(turned, probe, weights)
    for row, column in ((0, 0), (17, 5)):
        patches = [each[row : row + 8, column : column + 8] for each in (turned, object_)]
        before, after = (np.abs(np.fft.fft2(p * o)) for p, o in zip((probe, beam), patches, strict=True))
        np.testing.assert_allclose(before, after, rtol=1e-6)


# A measured scan, and larger simulated ones ---------------------------------------------------------------


def beamline_scan(folder, number):
    """As the simulated beamline writes it; its reconstruction is only compared with."""
    return open_scan(Beamline(folder=folder, seed=7).write(number)), specimen(7, number)


def scan_247(folder, positions):
    arrays = np.load(real_data("cnm_hxn_scan247/scan247.npz"))
    acquisition = Acquisition(
        counts=np.fft.fftshift(arrays["data"], axes=(1, 2)),
        positions_px=arrays[positions].astype(np.float64) + 64,
        simulated=False,
    )
    return open_scan(write_cxi(folder / "scan247.cxi", acquisition)), Start(probe=arrays["probe"][0, 0])


def said(epoch, error):
    print(f"epoch {epoch}: {error:.4f}", flush=True)
    return True


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_scan_247_with_its_true_positions(tmp_path):
    """Dead pixels are found by the reader and left free; the beam is the one that comes with the scan."""
    scan, start = scan_247(tmp_path, "scan_true")
    label = retrieve(scan, PhaseRetrieval(epochs=12), start=start, tell=said)
    assert label.errors[-1] <= 0.13
    assert fourier_error_of(label, scan) <= 0.13


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_scan_247_with_its_nominal_positions(tmp_path):
    """They are wrong by 7 pixels (standard deviation of rows and of columns), each by itself.

    The goal is an error of 0.14, which is not reached yet.
    """
    scan, start = scan_247(tmp_path, "scan_nominal")
    settings = PhaseRetrieval(epochs=12, correct_positions="search")
    label = retrieve(scan, settings, start=start, tell=said)
    true = np.load(real_data("cnm_hxn_scan247/scan247.npz"))["scan_true"] + 64.0
    missed = label.positions_px - true
    missed = np.hypot(*(missed - np.median(missed, axis=0)).T)
    print(f"median error of positions {np.median(missed):.2f} pixels, {(missed < 3).sum()} below 3")
    assert fourier_error_of(label, scan) < 0.2


@pytest.mark.endurance
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(4))
def test_specimens_of_the_simulated_beamline_from_their_frames_alone(tmp_path, number):
    scan, sample = beamline_scan(tmp_path, number)
    label = retrieve(scan, PhaseRetrieval(modes=1), tell=said)
    error = phase_error_of(label, scan, sample)
    print(f"{sample.name}: phase error {error:.4f} rad")
    assert error < 0.05


@pytest.mark.endurance
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(2))
def test_begun_from_a_blurred_object_it_takes_half_the_epochs(tmp_path, number):
    """Amplitude and phase of the known object, blurred by 2 pixels, stand for what a network predicts."""
    scan, sample = beamline_scan(tmp_path, number)
    blurred = gaussian_filter(np.abs(sample.object), 2) * np.exp(
        1j * gaussian_filter(np.angle(sample.object), 2)
    )
    beam = Start(probe=sample.probe)
    scratch = retrieve(scan, PhaseRetrieval(modes=1, epochs=12), start=beam, tell=said)
    begun = retrieve(scan, PhaseRetrieval(modes=1, epochs=6), start=replace(beam, object=blurred), tell=said)
    print([phase_error_of(each, scan, sample) for each in (scratch, begun)])
    assert begun.errors[-1] <= scratch.errors[-1] * 1.01
