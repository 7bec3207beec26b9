"""Who steers a run, and what becomes of a wish: accepted by the coordinator, or as if nobody had made it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from types import SimpleNamespace

import pytest
from runkit import ALONE, KERNEL, CutOffError, carry_out, class_tasks, job_in, order_for, same, weights_of

from rehearsal_kit.cluster.acceptance import Acceptance
from rehearsal_kit.cluster.coordinator import Coordinator
from rehearsal_kit.cluster.winding_down import WIND_DOWN_S
from rehearsal_kit.cluster.worker_pool import WorkerPool
from rehearsal_kit.record.commands import Arrived, FinishStream, Note, Stop, TakeCheckpoint, Wish, to_plain
from rehearsal_kit.record.lease import BEAT_S, LeaseWatch, RunLease, require_free
from rehearsal_kit.record.ledger import Ledger, read_ledger
from rehearsal_kit.record.rank_records import LeaseTaken
from rehearsal_kit.record.records import Applied, Noted
from rehearsal_kit.record.records import to_plain as to_plain_record

A, B = "client-a/1", "client-b/1"


@pytest.fixture
def acceptance(run):
    acceptance = Acceptance(run, A)
    yield acceptance
    acceptance.close()


def wish(number, text="x"):
    return Wish(number, Note(text=text)).to_json()


def written(run):
    return [(entry["holder"], entry["number"]) for entry in read_ledger(run.wishes)]


def test_a_wish_that_is_refused_is_written_down_nowhere(acceptance, run):
    said = acceptance.accept([wish(1), wish(2)], B)
    assert "Note (no. 1), Note (no. 2)" in said
    assert f"rk.attach({str(run.path)!r}, take=True)" in said
    assert acceptance.accept([wish(1)], A) == ""
    assert written(run) == [(A, 1)]
    assert [json.loads(text)["holder"] for text in acceptance.waiting] == [A]


def test_what_was_accepted_is_not_accepted_twice_and_never_refused_afterwards(acceptance, run):
    """A kernel that was not answered asks again; by then another one may steer."""
    acceptance.accept([wish(1)], A)
    assert acceptance.accept([wish(1), wish(2)], A) == ""
    acceptance.take(B, even_if_held=True)
    assert acceptance.accept([wish(1), wish(2)], A) == ""
    said = acceptance.accept([wish(2), wish(3)], A)
    assert "no. 3" in said
    assert "no. 2" not in said
    assert written(run) == [(A, 1), (A, 2)]


def test_two_kernels_that_give_the_same_numbers_in_turns(acceptance, run):
    for number in range(1, 4):
        for holder in (A, B):
            acceptance.take(holder, even_if_held=True)
            assert acceptance.accept([wish(number, holder)], holder) == ""
    assert written(run) == [(holder, number) for number in range(1, 4) for holder in (A, B)]


def test_a_kernel_comes_back_unless_another_one_came(acceptance):
    acceptance.lost("client-a")
    assert not acceptance.holder
    acceptance.returned(B)
    assert not acceptance.holder
    acceptance.returned(A)
    assert acceptance.holder == A
    acceptance.lost("client-a")
    assert acceptance.take(B, even_if_held=False)
    acceptance.returned(A)
    assert acceptance.accept([wish(1)], A)
    assert not acceptance.take(A, even_if_held=False)
    assert acceptance.holder == B
    acceptance.release(B)
    acceptance.returned(B)  # it has let go by itself
    assert not acceptance.holder


# Rank 0 --------------------------------------------------------------------------------------------------


def test_rank_0_ignores_wishes_of_nobody_and_of_those_who_never_steered(tmp_path):
    """Whatever the file holds: written by an earlier version, or by a kernel that was refused."""
    tasks = class_tasks(tmp_path / "tasks", tasks=2)
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (3, TakeCheckpoint())]
    whole, spec = job_in(tmp_path / "whole"), job_in(tmp_path / "run")
    carry_out(ALONE, whole, plan)
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=8)
    ledger = Ledger(spec.run.wishes, durable=True)
    for foreign in (Wish(9, Stop()), Wish(5, Stop(), B), Wish(6, Note(text="mine"), KERNEL)):
        ledger.append({"time": 0.0, **to_plain(foreign)})
    ledger.close()
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert outcome == "finished"
    assert [record.text for record in timeline.records(Noted)] == ["mine"]
    assert same(weights_of(spec), weights_of(whole))


def test_wishes_of_two_kernels_with_equal_numbers_both_take_effect_after_a_restart(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=2)
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (3, TakeCheckpoint())]
    spec = job_in(tmp_path / "run")
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=8)
    for path, entry in (
        (spec.run.generations, to_plain_record(LeaseTaken(holder=B, time=0.0))),
        (spec.run.wishes, to_plain(Wish(5, Note(text="of A"), KERNEL))),
        (spec.run.wishes, to_plain(Wish(5, Note(text="of B"), B))),
    ):
        ledger = Ledger(path, durable=True)
        ledger.append(entry)
        ledger.close()
    _, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert [record.text for record in timeline.records(Noted)] == ["of A", "of B"]
    applied = [(r.holder, r.number) for r in timeline.records(Applied) if r.kind == "Note"]
    assert applied == [(KERNEL, 5), (B, 5)]
    assert len({(e.get("holder"), e["number"]) for e in read_ledger(spec.run.effects) if e["number"]}) == 6


# The coordinator -----------------------------------------------------------------------------------------


class Hosts:
    """A scheduler whose workers take the orders and mail of a coordinator, and whose ranks do nothing.

    deaf: whether rank 0 takes no mail.
    """

    def __init__(self):
        self.workers = {"w0": SimpleNamespace(name=0, host="h")}
        self.told, self.orders, self.mail = [], [], []
        self.outcome, self.deaf, self.beats = "", False, 0

    def log_event(self, topic, message):
        self.told.append(message["told"])

    def rpc(self, address):
        return self

    async def rehearsal_kit_status(self, topic):
        if not self.orders:
            return {"alive": False}
        self.beats += 1
        generation = self.orders[-1]["generation"]
        state = {"alive": not self.outcome, "training": True, "outcome": self.outcome}
        return {**state, "generation": generation, "beats": self.beats}

    async def rehearsal_kit_start(self, order):
        self.orders.append(order)
        return ""

    async def rehearsal_kit_post(self, topic, wishes):
        if self.deaf:
            return "no rank of this run"
        self.mail += [json.loads(text)["number"] for text in wishes]
        return ""

    async def rehearsal_kit_give_up(self, topic):
        self.outcome = "failed"
        return ""


@contextlib.asynccontextmanager
async def coordinated(hosts):
    coordinator = Coordinator()
    await coordinator.start(hosts)
    try:
        yield coordinator
    finally:
        await coordinator.close()


def test_a_large_network_reaches_its_rank_however_long_that_takes(run, monkeypatch):
    monkeypatch.setattr("rehearsal_kit.cluster.worker_pool.ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setitem(WorkerPool.ask.__kwdefaults__, "timeout_s", 0.05)

    class Slow(Hosts):
        async def rehearsal_kit_start(self, order):
            await asyncio.sleep(0.5)
            return await super().rehearsal_kit_start(order)

    async def story():
        hosts = Slow()
        async with coordinated(hosts) as coordinator:
            coordinator.begin({**order_for(run), "spec": bytes(20 * 2**20)}, [], holder=A)
            await soon(lambda: hosts.orders)
            await asyncio.sleep(0.1)
            assert [told["record"] for told in hosts.told] == ["LeaseTaken", "GenerationBegan"]

    asyncio.run(story())


async def soon(holds):
    async def look():
        while not holds():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), 20)


def test_two_clusters_and_one_folder(run):
    """The second is told where the run is, writes nothing, and goes on once the first has let go."""

    async def story():
        async with coordinated(Hosts()) as second:
            async with coordinated(Hosts()) as first:
                assert first.begin(order_for(run, folder="/clusters/one"), [wish(1)], holder=A) == ""
                kept = run.cluster.read_text()
                refused = second.begin(order_for(run, folder="/clusters/two"), [wish(1, "B")], holder=B)
                assert "under way on cluster one" in refused
                assert run.cluster.read_text() == kept
                assert second.look(str(run.path), B) is None
            assert second.begin(order_for(run, folder="/clusters/two"), [wish(1, "B")], holder=B) == ""
        assert written(run) == [(A, 1), (B, 1)]
        taken = [e["holder"] for e in read_ledger(run.generations) if e["record"] == "LeaseTaken"]
        assert taken == [A, B]

    asyncio.run(story())


def test_generations_are_counted_where_the_lease_is_held(run):
    """What a kernel has read before it asks may be old by then: two sets of ranks never have one number."""

    async def story():
        for expected in (1, 2):
            hosts = Hosts()
            async with coordinated(hosts) as coordinator:
                coordinator.begin(order_for(run), [], holder=A)
                await soon(lambda hosts=hosts: hosts.orders)
                assert hosts.orders[0]["generation"] == expected
                LeaseWatch(run, hosts.orders[0]["lease"]).require()

    asyncio.run(story())


def test_wishes_from_before_the_start_come_with_it_and_asking_twice_changes_nothing(run):
    async def story():
        hosts = Hosts()
        async with coordinated(hosts) as coordinator:
            for _ in range(2):  # the first answer was lost
                assert coordinator.begin(order_for(run), [wish(1), wish(2)], holder=A) == ""
            await soon(lambda: len(hosts.mail) == 2)
            assert hosts.mail == [1, 2]
            assert len(hosts.orders) == 1
        assert written(run) == [(A, 1), (A, 2)]

    asyncio.run(story())


def test_wishes_keep_their_order_where_some_could_not_be_delivered(run):
    """Rank 0 takes a lower number after a higher one for one that it knows."""

    async def story():
        hosts = Hosts()
        async with coordinated(hosts) as coordinator:
            coordinator.begin(order_for(run), [], holder=A)
            await soon(lambda: hosts.orders)
            hosts.deaf = True
            assert await coordinator.post("rehearsal-kit/1", [wish(1)], A) == ""
            hosts.deaf = False
            await asyncio.gather(*(coordinator.post("rehearsal-kit/1", [wish(n)], A) for n in range(2, 6)))
            assert hosts.mail == [1, 2, 3, 4, 5]

    asyncio.run(story())


def test_a_run_that_is_over_can_be_gone_on_with_by_whoever_hears_of_it(run):
    async def story():
        hosts = Hosts()
        async with coordinated(hosts) as first, coordinated(Hosts()) as second:
            first.begin(order_for(run), [], holder=A)
            await soon(lambda: hosts.orders)
            hosts.outcome = "finished"
            await soon(lambda: hosts.told[-1]["record"] == "RunOver")
            said = await first.post("rehearsal-kit/1", [wish(1)], A)
            assert said.startswith("not accepted: Note (no. 1). It came too late: this run is finished; rk.")
            assert second.begin(order_for(run), [], holder=B) == ""
            lines = len(read_ledger(run.generations))
            first.lease("rehearsal-kit/1", B, take=True)  # somebody attaches to the one that is over
            assert len(read_ledger(run.generations)) == lines
            assert first.begin(order_for(run, "rehearsal-kit/2"), [], holder=A)  # now it is the second's
        assert written(run) == []

    asyncio.run(story())


def test_who_leads_is_what_the_coordinator_says(run):
    async def story():
        async with coordinated(Hosts()) as coordinator:
            coordinator.begin(order_for(run), [], holder=A)
            look = coordinator.look
            coordinator.remove_client(None, "client-a")
            assert look(str(run.path), B)["holder"] == ""
            assert look(str(run.path), A)["holder"] == A  # its connection is there again
            coordinator.remove_client(None, "client-a")
            assert coordinator.lease("rehearsal-kit/1", B, take=False)
            assert look(str(run.path), A)["holder"] == B
            assert "no. 7" in await coordinator.post("rehearsal-kit/1", [wish(7)], A)

    asyncio.run(story())


def test_no_wish_is_accepted_that_ranks_would_not_take_when_they_begin_anew(run, monkeypatch):
    """They ignore wishes of kernels of which the ledger does not say that they steer; the disk was full."""

    async def story():
        async with coordinated(Hosts()) as coordinator:
            with monkeypatch.context() as full:
                full.setattr(Coordinator, "_write", lambda *_: None)
                assert "has not begun" in coordinator.begin(order_for(run), [wish(1)], holder=A)
                require_free(run)
            assert coordinator.begin(order_for(run), [], holder=A) == ""
            with monkeypatch.context() as full:
                full.setattr(Coordinator, "_write", lambda *_: None)
                assert coordinator.lease("rehearsal-kit/1", B, take=True)
                said = await coordinator.post("rehearsal-kit/1", [wish(1)], B)
                assert "Note (no. 1)" in said
                assert "make room" in said
            assert await coordinator.post("rehearsal-kit/1", [wish(1)], B) == ""
        held = [e["holder"] for e in read_ledger(run.generations) if e["record"] == "LeaseTaken"]
        assert held == [A, B]
        assert written(run) == [(B, 1)]

    asyncio.run(story())


def test_a_coordinator_whose_lease_was_taken_over_gives_up_and_writes_no_more(run):
    """It was asleep for so long that others thought it gone."""

    async def story():
        hosts = Hosts()
        async with coordinated(hosts) as coordinator:
            coordinator.begin(order_for(run), [], holder=A)
            await soon(lambda: hosts.orders)
            (run.path / "lease.json").unlink()
            lines = read_ledger(run.generations)
            await asyncio.wait_for(soon(lambda: hosts.told[-1]["record"] == "RunOver"), BEAT_S + 20)
            assert hosts.told[-1]["outcome"] == "failed"
            assert "lost to somebody else" in hosts.told[-1]["error"]
            assert hosts.outcome == "failed"  # its ranks were told to give up
            assert read_ledger(run.generations) == lines

    asyncio.run(story())


def test_a_path_of_the_run_folder_is_written_down_by_its_place_in_there(tmp_path):
    spec = job_in(tmp_path / "run")
    (task,) = class_tasks(spec.run.path / "tasks", tasks=1)
    assert isinstance(task, Arrived)
    carry_out(ALONE, spec, [(0, task), (0, FinishStream())])
    effects = [entry["path"] for entry in read_ledger(spec.run.effects) if "path" in entry]
    assert effects == ["tasks/0.h5"]
    state = json.loads(next(spec.run.checkpoints.rglob("state.json")).read_text())
    assert state["stream"][0][0]["path"] == "tasks/0.h5"


def test_a_run_whose_first_wishes_cannot_be_written_down_has_not_begun(run, monkeypatch):
    """Its kernel says that it failed: going on without it, it would hold the folder and train nothing."""

    async def story():
        hosts = Hosts()
        async with coordinated(hosts) as coordinator:
            with monkeypatch.context() as full:
                full.setattr(Ledger, "append", no_room)
                for _ in range(2):  # asked again, it answers again
                    refused = coordinator.begin(order_for(run), [wish(1)], holder=A)
                    assert "Note (no. 1)" in refused
                    assert "has not begun" in refused
            require_free(run)
            assert coordinator.look(str(run.path), A) is None
            assert not hosts.told
            assert coordinator.begin(order_for(run), [wish(1)], holder=A) == ""
            await soon(lambda: hosts.mail)
        assert written(run) == [(A, 1)]

    asyncio.run(story())


@pytest.mark.parametrize("lost", [False, True], ids=["before there are any", "after a worker was lost"])
def test_a_cluster_that_ends_while_workers_are_waited_for_leaves_a_run_that_is_interrupted(run, lost):
    """Else nobody hears of its end, and a session does not go with it to the next job."""

    async def story():
        hosts = Hosts()
        workers = hosts.workers if lost else {}
        hosts.workers = dict(workers)
        async with coordinated(hosts) as coordinator:
            coordinator.followed_by = "17"
            order = order_for(run)
            coordinator.begin({**order, "recovery": {**order["recovery"], "restarts": 1}}, [], holder=A)
            if lost:
                await soon(lambda: hosts.orders)
                hosts.workers = {}
                coordinator.remove_worker(hosts, "w0")
                await soon(lambda: hosts.told[-1]["record"] == "GenerationEnded")
            await asyncio.wait_for(coordinator.wind_down(), WIND_DOWN_S / 2)
            over = read_ledger(run.generations)[-1]
            assert (over["outcome"], over["moves_to"]) == ("interrupted", "17")
            require_free(run)

    asyncio.run(story())


def test_a_cluster_that_ends_while_ranks_are_started_has_them_end(run):
    """The first rank is told so before it is there, and has to be told again."""

    class Slow(Hosts):
        interrupted = 0

        async def rehearsal_kit_start(self, order):
            self.starting.set()
            await self.may_start.wait()
            return await super().rehearsal_kit_start(order)

        async def rehearsal_kit_interrupt(self, topic):
            self.interrupted += 1
            self.outcome = "interrupted" if self.orders else ""
            return ""

    async def story():
        hosts = Slow()
        hosts.starting, hosts.may_start = asyncio.Event(), asyncio.Event()
        async with coordinated(hosts) as coordinator:
            coordinator.begin(order_for(run), [], holder=A)
            await hosts.starting.wait()
            ends = asyncio.create_task(coordinator.wind_down())
            await soon(lambda: hosts.interrupted)
            hosts.may_start.set()
            await asyncio.wait_for(ends, WIND_DOWN_S / 2)
            assert hosts.told[-1]["outcome"] == "interrupted"

    asyncio.run(story())


def test_a_run_whose_ledgers_cannot_be_opened_leaves_no_file_open(run):
    run.generations.symlink_to("nowhere")  # links are not followed

    async def story():
        async with coordinated(Hosts()) as coordinator:
            coordinator.begin(order_for(run), [], holder=A)
            before = set(os.listdir("/proc/self/fd"))
            assert "cannot write to the run folder" in coordinator.begin(order_for(run), [], holder=A)
            assert set(os.listdir("/proc/self/fd")) == before
        require_free(run)

    asyncio.run(story())


def no_room(*_):
    raise OSError(28, "No space left on device")


def test_a_run_that_ended_well_has_not_failed_because_its_lease_stays_behind(run, monkeypatch):
    """The file system is away for a moment."""

    async def story():
        hosts = Hosts()
        async with coordinated(hosts) as coordinator:
            coordinator.begin(order_for(run), [], holder=A)
            await soon(lambda: hosts.orders)
            with monkeypatch.context() as away:
                away.setattr(RunLease, "release", no_room)
                hosts.outcome = "finished"
                await soon(lambda: hosts.told[-1]["record"] == "RunOver")
                await asyncio.sleep(0.1)
            assert [told["outcome"] for told in hosts.told if told["record"] == "RunOver"] == ["finished"]

    asyncio.run(story())
