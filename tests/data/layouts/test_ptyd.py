import h5py
import numpy as np
import pytest
from layoutkit import BEAM, SIDE, require_read, truth

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

READING = ScanReading(crop=SIDE)


def write(path, wrote, *, chunks=3, links=False, **more):
    """Data in chunks, eleven of which sort otherwise by name. more: of the first chunk, or below /meta."""
    meta = {"energy": 8.0, "distance": 1.5, "psize": [75e-6, 75e-6], "center": np.array(BEAM, float)}
    meta |= {name.removeprefix("meta_"): more.pop(name) for name in list(more) if name.startswith("meta_")}
    weights = (~wrote.bad).astype(np.float32)
    with h5py.File(path, "w") as file:
        for name, value in ({"propagation": "farfield", "label": "None"} | meta).items():
            file[f"meta/{name}"] = "None" if value is None else value
        for number, frames in enumerate(np.array_split(np.arange(len(wrote.counts)), chunks)):
            part = {
                "data": wrote.stored()[frames],
                "positions": wrote.positions_m[frames],
                "weights": np.broadcast_to(weights, (len(frames), *weights.shape)),
                "indices": frames,
            } | (more if number == 0 else {})
            there, at = file, f"chunks/{number}"
            if links:
                name = f"{path.name}.part{number:03d}"
                file[at] = h5py.ExternalLink(name, at)
                there = h5py.File(path.with_name(name), "w")
            for name, value in part.items():
                if value is not None:
                    there[f"{at}/{name}"] = value
            if links:
                there.close()
    return path


@pytest.mark.parametrize(("chunks", "links"), [(1, False), (11, False), (3, True)])
def test_chunks_come_in_their_order_wherever_they_lie(tmp_path, chunks, links):
    wrote = truth()
    path = write(tmp_path / "a.ptyd", wrote, chunks=chunks, links=links)
    scan = require_read(path, wrote, reading=READING)
    assert scan.layout == "ptyd"
    assert len(scan.others) == (chunks if links else 0)


def test_what_ptypy_did_not_know_is_seen_or_told(tmp_path):
    wrote = truth()
    path = write(tmp_path / "a.ptyd", wrote, meta_energy=None, meta_center="fftshift", weights=np.zeros(0))
    with pytest.raises(ScanError, match=r"energy None eV.*ScanReading\(energy_ev"):
        open_scan(path, reading=READING)
    require_read(path, wrote, reading=ScanReading(crop=SIDE, energy_ev=8_000), centre=False)


def test_a_chunk_that_is_not_there_yet_is_waited_for(tmp_path):
    path = write(tmp_path / "a.ptyd", truth(), links=True)
    (tmp_path / "a.ptyd.part002").unlink()
    with pytest.raises(NotYetError, match="part002"):
        open_scan(path, reading=READING)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"positions": None}, "there is no dataset /chunks/0/positions"),
        ({"positions": np.zeros((3, 2))}, r"positions is of shape \(3, 2\); it must be \(4, 2\)"),
        ({"positions": np.zeros((4, 3))}, r"shape \(4, 3\)"),
        ({"data": np.zeros((4, 37), np.uint16)}, r"chunks/0/data is uint16 of shape \(4, 37\)"),
        ({"data": np.zeros((4, 36, 52), np.int64)}, "frames that differ"),
        ({"weights": np.ones((4, 5, 5))}, r"weights of frames of \(37, 52\)"),
        ({"meta_psize": [75e-6, 50e-6]}, "only square"),
        ({"meta_energy": -8.0}, "energy is -8; it must be a number above zero"),
        ({"meta_distance": 1.5e9}, "object pixel"),
        ({"meta_propagation": "nearfield"}, "only scans in the far field"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, more, says):
    path = write(tmp_path / "a.ptyd", truth(), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path, reading=READING)
