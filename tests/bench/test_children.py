"""Work of measurements in fresh processes: what fails, vanishes or hangs is said, and nothing is left."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest
import torch

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.bench import children

pytestmark = pytest.mark.timeout(120)  # one that is waited for without end is a fault, and is known by then


def refuse(groups: ProcessGroups) -> int:
    if groups.rank:
        raise ValueError("this rank will not")
    return groups.sum(torch.ones(1)).item()


def vanish() -> None:
    os._exit(3)


def stay() -> None:
    threading.Event().wait()


def test_a_rank_that_fails_ends_the_others():
    with pytest.raises(RehearsalKitError, match="this rank will not"):
        children.on_ranks(["cpu", "cpu"], refuse)


def test_a_child_that_vanishes_is_noticed():
    with pytest.raises(RehearsalKitError, match="without an answer"):
        children.in_child(vanish)


def test_a_child_that_does_not_answer_in_time_is_ended_and_said(monkeypatch):
    monkeypatch.setattr(children, "LONGEST_S", 1.0)
    with pytest.raises(RehearsalKitError, match="1 of 1 measuring processes have not answered for 1 s"):
        children.in_child(stay)


def test_those_that_have_answered_in_time_are_not_among_those_that_have_not():
    (answering, sending), (silent, kept_open) = (multiprocessing.Pipe(duplex=False) for _ in range(2))
    with answering, sending, silent, kept_open:
        sending.send((5, ""))
        with pytest.raises(RehearsalKitError, match="1 of 2 measuring processes have not answered for 0 s"):
            children._collected({answering: 0, silent: 1}, longest_s=0.1)
        sending.send((5, ""))
        kept_open.send((6, ""))
        assert children._collected({answering: 0, silent: 1}, longest_s=60) == [5, 6]
