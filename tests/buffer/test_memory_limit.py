"""Whether buffers fit: the memory of the machine, the limits of a job, and an equal share for every rank."""

from __future__ import annotations

import psutil
import pytest

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.memory_limit import available_bytes, for_changed_rows, require_room, share_of

ALONE = GroupExchange(ProcessGroups(0, 1))


def spec(folder, *, limit, used, cache):
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


def test_the_tightest_limit_counts_and_file_cache_does_not(tmp_path):
    cgroups = tmp_path / "cgroup"
    spec(cgroups / "job", limit=5000, used=4500, cache=300)
    spec(cgroups / "job" / "step", limit="max", used=4500, cache=300)
    (tmp_path / "membership").write_text("0::/job/step\n")
    assert available_bytes(tmp_path / "membership", cgroups) == 800


def test_without_limits_it_is_what_the_machine_has(tmp_path):
    assert 0 < available_bytes(tmp_path / "none", tmp_path) <= psutil.virtual_memory().total


@pytest.mark.parametrize(("capacity", "ranks"), [(1, 1), (7, 3), (1000, 7), (8, 8)])
def test_shares_cover_the_capacity_and_differ_by_at_most_one(capacity, ranks):
    shares = [share_of(capacity, rank, ranks) for rank in range(ranks)]
    assert sum(shares) == capacity
    assert max(shares) - min(shares) <= 1


def test_every_rank_needs_room_for_a_sample():
    with pytest.raises(SettingsError, match="2 samples for 3 ranks"):
        share_of(2, 0, 3)


def test_more_than_the_machine_has_left_is_refused():
    assert require_room(1000, ALONE) == 1
    with pytest.raises(SettingsError, match=r"would take .* GiB are free there.*Lower capacity"):
        require_room(psutil.virtual_memory().total, ALONE)


def test_two_checkpoints_of_all_ranks_leave_half_of_what_is_free():
    for ranks in (1, 3):
        assert 2 * ranks * for_changed_rows(240, ranks=ranks) == 120
