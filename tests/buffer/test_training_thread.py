"""What a step asks of the training thread: nothing that waits for a device, and a thread for the rest."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from operations import Operations
from samples import batch_of, new_buffer

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.job_thread import JobThread

READING = frozenset({"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select"})
"""Operations that give numbers, or a size that hangs on numbers, to the host: on a GPU it waits for them."""
BATCH, STEPS = 8, 9


def steps(*, by_sample: bool, copy: bool, outputs=torch.float32, **settings) -> list[set[str]]:
    """What each of some steps reads on the training thread, in a buffer that is full from the fifth on."""
    read = []
    with new_buffer(ProcessGroups(0, 1), capacity=4 * BATCH, outputs=outputs, **settings) as buffer:
        for step in range(STEPS):
            fresh = batch_of(0, step, BATCH)
            fresh["outputs"] = fresh["outputs"].to(outputs)
            group = fresh["label"].long() % 3 if by_sample else step // 4
            with Operations() as operations:
                drawn = buffer.advance()
                losses = torch.rand(len(drawn.owners)) if drawn is not None else None
                buffer.offer(fresh, group=group, losses=losses, copy=copy)
            read.append(operations.seen & READING)
    return read


@pytest.mark.parametrize("copy", [True, False], ids=["copied", "lent"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"distillation": 4, "half": ("outputs",)},
        {"policy": "reservoir", "removal": "loss"},
        {"policy": "fifo", "draw": "groups", "outputs": torch.bfloat16},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "quotas",
)
def test_neither_advance_nor_offer_reads_a_number_of_a_tensor(settings, copy):
    for by_sample in (False, True):
        assert steps(by_sample=by_sample, copy=copy, **settings) == [set()] * STEPS


def test_a_number_that_is_read_is_seen():
    with Operations() as operations:
        bool(torch.ones(3).isfinite().all())
    assert operations.seen & READING


def test_jobs_are_done_in_order_and_errors_come_where_the_result_is_asked_for():
    thread, done = JobThread("worker"), []
    jobs = [thread.submit(done.append, number) for number in range(20)]
    failed = thread.submit(int, "no number")
    assert thread.submit(threading.current_thread).result().name == "worker"
    assert [job.result() for job in jobs] == [None] * 20
    assert done == list(range(20))
    for _ in range(2):
        with pytest.raises(ValueError, match="no number"):
            failed.result()
    thread.join()
    with pytest.raises(RuntimeError, match="worker was ended"):
        thread.submit(done.append, 20)


def test_a_thread_keeps_no_result_and_ends_with_what_it_belongs_to():
    thread = JobThread("worker")
    job = thread.submit(torch.ones, 3)
    result = weakref.ref(job.result())
    runs = thread._thread
    thread.submit(int).result()  # the first job is over for the thread, too
    del job
    assert result() is None
    del thread
    gc.collect()
    runs.join(10)
    assert not runs.is_alive()
