import threading
from pathlib import Path

import numpy as np
import pytest
from real_data import real_data

from rehearsal_kit.base.errors import ScanError, SettingsError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reconstructions import Reconstruction
from rehearsal_kit.data.scans.scan import patch_corners
from rehearsal_kit.data.simulated_beamline import Beamline, convert, simulate_counts, specimen


def small(modes: int = 1, side: int = 16) -> Reconstruction:
    random = np.random.default_rng(3)

    def wave(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)

    return Reconstruction(
        name="small",
        object=wave(40, 50),
        probe=wave(modes, side, side),
        positions_px=np.array([[10.0, 12.0], [20.5, 30.25], [31.0, 41.0]]),
        layout="rpie",
    )


def test_counts_are_the_far_field_of_probe_times_patch_with_dc_in_the_centre():
    sample = small(modes=2)
    counts = simulate_counts(sample, photons=1e9, seed=0)
    assert counts.dtype == np.uint32
    row, column = patch_corners(sample.positions_px, 16)[1]
    assert (row, column) == (13, 22)
    # Written out as a sum, so that nothing is shared with the code but the definition.
    exit_waves = sample.probe * sample.object[row : row + 16, column : column + 16]
    place = np.arange(16)
    kernel = np.exp(-2j * np.pi * np.outer(place - 8, place) / 16)  # frequency 0 at index 8
    expected = sum(np.abs(kernel @ wave @ kernel.T) ** 2 for wave in exit_waves)
    shares = counts[1] / counts[1].sum()
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=2e-4)


def test_photons_are_the_mean_of_frames_and_the_noise_is_poissons():
    sample = small()
    counts = simulate_counts(sample, photons=4000, seed=1)
    assert counts.dtype == np.uint16
    assert counts.sum(axis=(1, 2)).mean() == pytest.approx(4000, rel=0.05)
    bright = simulate_counts(sample, photons=4e9, seed=1) * 1e-6
    assert ((counts - bright) ** 2 / bright).mean() == pytest.approx(1, rel=0.2)


def test_the_seed_alone_decides_and_numpys_generator_is_left_alone():
    before = np.random.get_state()[1].copy()
    first, again, other = (simulate_counts(small(), photons=1e4, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_odd_probes_are_padded_to_a_power_of_two_without_changing_the_pattern():
    padded = simulate_counts(small(side=12), photons=1e9, seed=0).astype(float)
    assert padded.shape == (3, 16, 16)
    sample = small(side=12)
    row, column = patch_corners(sample.positions_px, 12)[0]
    wave = np.zeros((16, 16), complex)
    wave[:12, :12] = sample.probe[0] * sample.object[row : row + 12, column : column + 12]
    expected = np.abs(np.fft.fftshift(np.fft.fft2(wave))) ** 2
    np.testing.assert_allclose(padded[0] / padded[0].sum(), expected / expected.sum(), atol=2e-4)


def test_more_photons_than_the_counts_can_hold_are_refused():
    with pytest.raises(SettingsError, match="brightest pixel"):
        simulate_counts(small(), photons=1e12, seed=0)


def test_patches_outside_the_object_are_refused():
    sample = small()
    outside = Reconstruction(**{**vars(sample), "positions_px": np.array([[7.0, 20.0]])})
    with pytest.raises(ScanError, match="leave the object"):
        simulate_counts(outside, photons=10, seed=0)


def test_specimens_and_their_beams_differ_and_repeat():
    samples = [specimen(7, number) for number in range(5)]
    again = specimen(7, 2)
    np.testing.assert_array_equal(samples[2].object, again.object)
    assert [sample.name for sample in samples] == ["balls 0", "lines 1", "star 2", "grains 3", "balls 4"]
    for i, one in enumerate(samples):
        for other in samples[:i]:
            overlap = np.abs(np.vdot(one.probe, other.probe))
            assert overlap < 0.97
            assert one.object.shape != other.object.shape or np.abs(one.object - other.object).max() > 0.3
    for sample in samples:
        assert np.linalg.norm(sample.probe) == pytest.approx(1, rel=1e-5)
        assert len(sample.positions_px) == 24 * 16


def test_the_beamline_writes_scans_that_open(tmp_path):
    beamline = Beamline(folder=tmp_path / "incoming", scans=2, interval_s=0, seed=3)
    beamline.run(threading.Event())
    assert sorted(path.name for path in beamline.folder.iterdir()) == ["scan_0000.cxi", "scan_0001.cxi"]
    scan = open_scan(beamline.folder / "scan_0001.cxi")
    sample = specimen(3, 1)
    assert scan.simulated
    assert scan.frame_shape == (64, 64)
    assert scan.object_pixel_m == pytest.approx(22.5e-9, rel=0.01)
    np.testing.assert_array_equal(scan.object(), sample.object)
    # Metres and back must not move a patch.
    np.testing.assert_array_equal(
        patch_corners(scan.positions_px, 32), patch_corners(sample.positions_px, 32)
    )


def test_the_beamline_stops_when_told(tmp_path):
    stop = threading.Event()
    beamline = Beamline(folder=tmp_path, scans=3, interval_s=1000)
    thread = threading.Thread(target=beamline.run, args=(stop,), daemon=True)
    thread.start()
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(list(tmp_path.glob("*.cxi"))) == 1


@pytest.mark.parametrize("wrong", [{"scans": 0}, {"side": 48}, {"interval_s": -1}])
def test_settings_of_the_beamline_are_checked(tmp_path, wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Beamline(folder=tmp_path, **wrong)


def test_hdf5_files_are_converted_to_themselves(tmp_path):
    assert convert("/data/a.h5", tmp_path, seed=0) == Path("/data/a.h5")


def test_the_measured_scan_is_converted_as_measured(tmp_path):
    scan = open_scan(convert(real_data("cnm_hxn_scan247/scan247.npz"), tmp_path, seed=0))
    assert (len(scan), scan.simulated, scan.energy_ev) == (395, False, None)
    assert (~scan.good_pixels).sum() == 9
    frames = scan.frames([0, 200])
    assert (frames[:, ~scan.good_pixels] > 0).any()
    middle, corner = frames[:, 32:96, 32:96].mean(), frames[:, :16, :16].mean()
    assert middle > 5 * corner


def test_a_real_reconstruction_is_converted_with_simulated_counts(tmp_path):
    name = "lcls_xpp_run1084_recon/Run1084_recon3_postPC.npz"
    scan = open_scan(convert(real_data(name), tmp_path, seed=0, photons=1e5))
    assert (len(scan), scan.simulated, scan.frame_shape) == (1087, True, (64, 64))
    assert scan.frames(range(50)).sum(axis=(1, 2)).mean() == pytest.approx(1e5, rel=0.2)
