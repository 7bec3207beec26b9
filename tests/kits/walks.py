"""Whole runs as people and machines make them: commands at random moments, interruptions between them.

A walk is a list of generations: what a person asks for while it goes on, and how it ends. It is carried out
on ranks that are threads of this process, then held to what was promised (`broken_promises`).
"""

from __future__ import annotations

import copy
import shutil
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from runkit import FEATURES, KERNEL
from threads import ConnectionLostError, KilledError, ThreadGroups, World

from rehearsal_kit.base.errors import RankError
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.shard_room import ShardRoom
from rehearsal_kit.data.tensor_tasks import TensorTask, write_task
from rehearsal_kit.learning.strategies.choice import named_strategy
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.rank.run_spec import RunSpec, keep_spec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import (
    Arrived,
    Command,
    FinishStream,
    Reopen,
    Resume,
    Stop,
    Wish,
    to_plain,
)
from rehearsal_kit.record.effects import effects_of
from rehearsal_kit.record.ledger import Ledger, read_ledger
from rehearsal_kit.record.rank_records import LeaseTaken
from rehearsal_kit.record.records import TaskBegan, TaskEnded
from rehearsal_kit.record.records import to_plain as to_plain_record
from rehearsal_kit.record.replay_queue import AGAIN
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.replay import compare_runs, recorded_ranks

SIZES = (9, 17, 5, 16, 12, 8, 10, 7)
"""Training samples of the tasks: fewer than ranks x batch, one more than whole mini-batches ..."""
ENDS = {
    "killed": (),
    "interrupted": ("interrupted",),
    "regrouped": ("regrouped", "interrupted", "finished"),
    "": ("finished",),
}
"""What every rank may say in the end, nothing where it says nothing; "stopped" for all others."""
CLASSES = 2 * len(SIZES)
POISONED, POISON, CUT_SHORT = 4, 1e6, 6
UNBEARABLE = "a number that this network cannot bear"
SKIPPED = "skipped by a person"
LOOKS = 200
"""Step boundaries of one generation after which something must have come to its end."""
STUCK = 3
"""Step boundaries without a step in between: ranks that are to end after a task are paused in it."""


ON_DEVICE = ShardRoom(lambda: 10**12, lambda: 0, known_after=1)
PINNED = ShardRoom(lambda: 0, lambda: 10**12, known_after=1, pinned_row_bytes=0)
AS_READ = ShardRoom(lambda: 0, lambda: 0)


@dataclass(frozen=True)
class Generation:
    """What is asked of one set of ranks, and how it ends.

    commands: each with the number of step boundaries before it. ends: "killed"; "stopped"; "half stopped",
    where a rank dies after all were told to stop, so that ranks are started again; "interrupted", where a
    worker closes by itself; "regrouped", where more ranks are to go on after a task (where that comes to no
    end, a worker closes then); or "" where the walk ends with it. victim: which rank is killed, and before
    which of its collectives at the latest.
    """

    commands: tuple[tuple[int, Command], ...] = ()
    ends: str = ""
    victim: tuple[int, int] = (0, 0)
    meanwhile: str = ""
    """What happens to the files until the next generation: a name in `MEANWHILE`."""
    ranks: int = 2
    """Of the generation that comes after it."""
    unheard: tuple[Command, ...] = ()
    """Written down when these ranks are told that more will go on; none of these hears of it."""


@dataclass(frozen=True)
class Walk:
    """A run from its beginning to its end."""

    ranks: int
    strategy: str
    policy: str
    generations: tuple[Generation, ...]
    removal: str = "random"
    room: ShardRoom | None = None
    """Memory in which shards may lie; None: by the policy."""


@dataclass
class Walked:
    """What came of it."""

    spec: RunSpec
    results: list[list[Any]] = field(default_factory=list)
    """By generation and rank: how it ended, with the fingerprint of its weights, or what ended it."""
    plans: list[Generation] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    away: dict[str, Path] = field(default_factory=dict)
    """Files of tasks that were taken away, by name, and where they are."""
    touched: set[str] = field(default_factory=set)
    """Files that were taken away or changed at any time, by name."""
    asked: list[Command] = field(default_factory=list)
    """By number of the wish, from 1."""

    def take_away(self, name: str, instead: str = "") -> None:
        """Put the file of a task elsewhere; another one may take its place."""
        self.touched.add(name)
        path, kept = self.spec.run.path / "tasks" / name, self.spec.run.path.parent / f"kept {name}"
        if name not in self.away:
            self.away[name] = path.rename(kept)
        if instead:
            source = self.away.get(instead, path.with_name(instead))
            shutil.copyfile(source, path)

    def put_back(self) -> None:
        """As the files were when they arrived."""
        for name, kept in self.away.items():
            kept.replace(self.spec.run.path / "tasks" / name)
        self.away.clear()


class Network(torch.nn.Module):
    """Logits of vectors, without random numbers in the forward pass; with a running mean to be kept alike."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, CLASSES)
            )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.training and bool((image == POISON).any()):
            raise ValueError(UNBEARABLE)
        return self.layers(image)


class Person:
    """The mailbox of rank 0 in one generation: gives the next command once it is due; a walk never waits.

    Where nothing gets on any more (the run waits, or is paused), whatever comes next is due.
    """

    def __init__(self, walked: Walked, plan: Generation, left: deque[Command], world: World) -> None:
        self.rank: Rank | None = None
        self._walked, self._plan, self._world = walked, plan, world
        self._left = left
        """Asked for in earlier generations, and not given yet."""
        self._commands = deque(plan.commands)
        self._unheard = deque(plan.unheard)
        self._looks = self._since = self._still = 0
        self._seen = -1
        self._ended = False

    def empty(self) -> bool:
        assert self.rank is not None
        self._looks += 1
        assert self._looks < LOOKS, "this generation comes to no end"
        still, self._seen = self.rank.step == self._seen, self.rank.step
        self._since += 1
        if self._left:
            return False
        if self._commands:
            return not (still or self._since > self._commands[0][0])
        if self._plan.ends == "killed":
            self._world.dies = (self._plan.victim[0] % self._world.ranks, 0)
            return True
        if self._plan.ends == "interrupted":
            self.rank.interrupt()
            return True
        if self._plan.ends == "regrouped":
            self.rank.regroup(True)
            while self._unheard:
                self.send(self._unheard.popleft())
            self._still = self._still + 1 if still else 0
            if self._still == STUCK:
                self.rank.interrupt()
            return True
        return self._ended or self._plan.ends == "told to stop"

    def get(self) -> str:
        if self._left:
            command = self._left.popleft()
        elif self._commands:
            command, self._since = self._commands.popleft()[1], 0
        elif self._plan.ends in ("stopped", "half stopped"):
            command, self._ended = Stop(), True
        else:
            command, self._ended = FinishStream(), True
            self._left.append(Resume())
        self._seen = -1
        return self.send(command)

    def send(self, command: Command) -> str:
        """Number a wish and write it down, as the coordinator does before it passes it on."""
        if isinstance(command, Arrived):
            command = replace(command, path=str(self._walked.spec.run.path / "tasks" / command.path))
        self._walked.asked.append(command)
        wish = Wish(len(self._walked.asked), command, KERNEL)
        _append(self._walked.spec.run.wishes, to_plain(wish))
        return wish.to_json()

    @property
    def undelivered(self) -> deque[Command]:
        """What the next generation is still to be asked."""
        return deque([*self._left, *(command for _, command in self._commands)])


def walk_tasks(folder: Path) -> list[Arrived]:
    """The tasks of all walks, written once; their paths are names in the folder of tasks of a run.

    One makes the network fail, the file of another is cut short.
    """
    folder.mkdir()
    centres = 2 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    made = []
    for number, size in enumerate(SIZES):
        random = torch.Generator().manual_seed(number)
        label = 2 * number + torch.arange(size + 8) % 2
        image = centres[label] + torch.randn(len(label), FEATURES, generator=random)
        if number == POISONED:
            image[10] = POISON
        parts = {"training": slice(8, None), "watched": slice(0, 4), "test": slice(4, 8)}
        splits = {name: {"image": image[part], "label": label[part]} for name, part in parts.items()}
        task = TensorTask(name=f"task {number}", inputs="image", group="label", **splits)
        made.append(replace(write_task(task, folder / f"{number}.h5"), path=f"{number}.h5"))
    cut_short = folder / f"{CUT_SHORT}.h5"
    cut_short.write_bytes(cut_short.read_bytes()[: cut_short.stat().st_size // 2])
    return made


def job_of(walk: Walk, folder: Path) -> RunSpec:
    """A run of steps of a millisecond."""
    # Each setting with other policies, so that walks meet all of them.
    scaling = {"quotas": "none", "reservoir": "global", "fifo": "sqrt"}[walk.policy]
    looks = {"quotas": 0, "reservoir": 1, "fifo": 2}[walk.policy]
    least_steps = {"quotas": 0, "reservoir": 0, "fifo": 9}[walk.policy]
    draw = {"quotas": "samples", "reservoir": "earlier", "fifo": "groups"}[walk.policy]
    lag = {"quotas": 0, "reservoir": 2, "fifo": 1}[walk.policy]
    room = {"quotas": None, "reservoir": ON_DEVICE, "fifo": PINNED}[walk.policy]
    bucket_mib = {"quotas": 1e-4, "reservoir": 2e-4, "fifo": None}[walk.policy]
    averages = {"quotas": (0.9, None), "reservoir": (0.9, 0.5), "fifo": (None, None)}[walk.policy]
    averages = {"MeanER": (0.9, None), "CLSER": (0.9, 0.5)}.get(walk.strategy, averages)
    spec = RunSpec(
        run=RunFolder(folder).create(),
        seed=11,
        network=Network(),
        strategy=named_strategy(walk.strategy),
        preparation=Preparation(),
        training=Training(
            batch=4,
            epochs=1,
            least_steps=least_steps,
            learning_rate=0.02,
            evaluated=2,
            average=averages[0],
            plastic_average=averages[1],
            scaling=scaling,
            stability_every=looks,
            bucket_mib=bucket_mib,
        ),
        rehearsal=Rehearsal(
            representatives=3,
            distillation=2,
            candidates=2,
            capacity=20,
            policy=walk.policy,
            removal=walk.removal,
            draw=draw,
            outputs=True,
        ),
        recovery=Recovery(checkpoint_s=1e9, keep_last=4),
        lag=lag,
        room=walk.room or room,
    )
    keep_spec(spec, ranks=walk.ranks)
    _append(spec.run.generations, to_plain_record(LeaseTaken(holder=KERNEL, time=0.0)))
    return spec


def _append(path: Path, entry: dict[str, Any]) -> None:
    ledger = Ledger(path, durable=False)
    ledger.append({"time": 0.0, **entry})
    ledger.close()


def carry_out(walk: Walk, folder: Path, tasks: Path) -> Walked:
    """Every generation of a walk, one after the other. tasks: the folder of `walk_tasks`."""
    walked = Walked(job_of(walk, folder))
    shutil.copytree(tasks, folder / "tasks")
    ranks, left, again = walk.ranks, deque[Command](), False
    for plan in walk.generations:
        if again:
            left.appendleft(Reopen())
        left = _one_generation(walked, plan, left, ranks)
        if plan.ends == "half stopped":
            _one_generation(walked, Generation(ends="told to stop"), deque(), ranks)
        again = plan.ends in ("stopped", "half stopped") or _has_finished(plan, walked.results[-1][0])
        if plan.meanwhile:
            MEANWHILE[plan.meanwhile](walked)
        ranks = plan.ranks
    return walked


def _has_finished(plan: Generation, result: Any) -> bool:
    """Whether there was no task left after which other ranks could have gone on."""
    return plan.ends == "regrouped" and isinstance(result, tuple) and result[0] == "finished"


def _one_generation(walked: Walked, plan: Generation, left: deque[Command], ranks: int) -> deque[Command]:
    number = len(walked.results) + 1
    dies = (plan.victim[0] % ranks, plan.victim[1]) if plan.ends == "killed" else None
    world = World(ranks, dies=dies)
    person = Person(walked, plan, left, world)
    walked.plans.append(plan)
    walked.ranks.append(ranks)
    walked.results.append(world.run(lambda groups: _one_rank(groups, walked.spec, person, number)))
    return person.undelivered


def _one_rank(groups: ThreadGroups, spec: RunSpec, person: Any, generation: int) -> tuple[str, str]:
    rank = Rank(
        replace(spec, network=copy.deepcopy(spec.network)),
        groups,
        mailbox=person if groups.rank == 0 else Nobody(),
        publish=lambda record, line: None,
        generation=generation,
    )
    if groups.rank == 0:
        person.rank = rank
    return rank.run(), rank.fingerprint()


# Between two generations ------------------------------------------------------------------------------------


def _tear(walked: Walked) -> None:
    """The kill left half a line in every ledger."""
    run = walked.spec.run
    for path in (run.effects, run.wishes, run.timeline):
        with path.open("ab") as stream:
            stream.write(b'{"kind": "Ste')


def _damage(walked: Walked) -> None:
    """A byte of the newest checkpoint is another."""
    found = find_checkpoints(walked.spec.run.checkpoints)
    if found:
        path = found[max(found)].folder / "learner.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)


def _move(walked: Walked) -> None:
    """Somebody moves the run folder."""
    there = walked.spec.run.path.with_name(walked.spec.run.path.name + " moved")
    walked.spec.run.path.rename(there)
    walked.spec = replace(walked.spec, run=RunFolder(there))


def _archive(walked: Walked) -> None:
    """Somebody takes away the files of tasks that were trained already."""
    timeline = Timeline.load(walked.spec.run.timeline).lineage()
    ended, arrived = {record.task for record in timeline.records(TaskEnded)}, timeline.tasks()
    for task in ended:
        walked.take_away(Path(arrived[task].path).name)


def _change(walked: Walked) -> None:
    """The file of the newest task that waits is written anew."""
    waiting = Timeline.load(walked.spec.run.timeline).lineage().waiting()
    if waiting:
        walked.take_away(Path(waiting[max(waiting)].path).name, instead="0.h5")


def _take_first(walked: Walked) -> None:
    """Somebody takes away the file that was submitted first, trained or not."""
    walked.take_away("0.h5")


def _take_under_way(walked: Walked) -> None:
    """Somebody takes away the file of the task under way."""
    timeline = Timeline.load(walked.spec.run.timeline).lineage()
    began, ended = timeline.last(TaskBegan), {record.task for record in timeline.records(TaskEnded)}
    if began is not None and began.task not in ended:
        walked.take_away(Path(timeline.tasks()[began.task].path).name)


MEANWHILE = {
    "torn": _tear,
    "damaged": _damage,
    "moved": _move,
    "archived": _archive,
    "changed": _change,
    "first": _take_first,
    "under way": _take_under_way,
}


class Nobody:
    """The mailbox of those that are asked for nothing."""

    rank: Rank | None = None

    def empty(self) -> bool:
        return True

    def get(self) -> str:
        raise AssertionError("there is nothing")


# What was promised ------------------------------------------------------------------------------------------


def broken_promises(walked: Walked, folder: Path) -> list[str]:
    """Every promise that this walk has broken, in words; none if all is well. folder: for a replay."""
    broken = _ends(walked)
    if not broken:
        walked.put_back()
        broken = [
            *_tasks(walked),
            *_commands(walked),
            *_steps(walked),
            *_rests(walked),
            *_replay(walked, folder),
        ]
    return broken


def _ends(walked: Walked) -> list[str]:
    broken = []
    for number, (plan, results) in enumerate(zip(walked.plans, walked.results, strict=True), 1):
        wanted = ENDS.get(plan.ends, ("stopped",))
        for rank, result in enumerate(results):
            if wanted and (not isinstance(result, tuple) or result[0] not in wanted):
                broken.append(f"generation {number}, rank {rank}: {_words(result)} instead of {wanted}")
            if not wanted and not isinstance(result, KilledError | ConnectionLostError | RankError):
                broken.append(f"generation {number} was killed, but rank {rank} ended with {_words(result)}")
        whole = [result for result in results if isinstance(result, tuple)]
        if wanted and len(set(whole)) > 1:
            broken.append(f"generation {number}: ranks ended differently: {whole}")
    return broken


def _words(result: Any) -> str:
    if isinstance(result, BaseException):
        return "".join([repr(result), *getattr(result, "__notes__", [])])
    return str(result)


def _tasks(walked: Walked) -> list[str]:
    timeline = Timeline.load(walked.spec.run.timeline).lineage()
    ended = Counter(record.task for record in timeline.records(TaskEnded))
    twice = [task for task, count in ended.items() if count > 1]
    arrived, aside = timeline.tasks(), timeline.set_aside()
    lost = [task for task in arrived if task not in ended and task not in aside]
    both = [task for task in ended if task in aside]
    submitted = sum(isinstance(command, Arrived) for command in walked.asked)
    held = effects_of(read_ledger(walked.spec.run.effects)).entries
    bad = {f"{POISONED}.h5", f"{CUT_SHORT}.h5", *walked.touched}
    # Somebody may end a task before the sample that no network bears has its turn; a strategy that trains
    # all tasks together then meets it in every later one.
    met = any(Path(arrived[task].path).name == f"{POISONED}.h5" for task in ended)
    wrongly = [
        f"{record.name} was set aside: {record.reason}"
        for record in aside.values()
        if Path(record.path).name not in bad
        and record.reason != SKIPPED
        and not (met and UNBEARABLE in record.reason)
    ]
    came = sum(entry["kind"] == "Arrived" or _is_refused_arrival(entry) for entry in held)
    return [
        *([f"tasks {twice} were trained twice"] if twice else []),
        *([f"tasks {lost} were neither trained nor set aside"] if lost else []),
        *wrongly,
        *([f"tasks {both} were trained and set aside"] if both else []),
        *([f"{submitted} tasks were submitted, {came} arrived"] if submitted != came else []),
    ]


def _is_refused_arrival(entry: dict[str, Any]) -> bool:
    return entry["kind"] == "SetAside" and entry["task"] is None


def _commands(walked: Walked) -> list[str]:
    # What was decided again on other ranks, or on data that had changed, is recorded again as well.
    first = [
        entry for entry in read_ledger(walked.spec.run.effects) if entry["number"] and AGAIN not in entry
    ]
    numbers = Counter(entry["number"] for entry in first)
    asked = range(1, len(walked.asked) + 1)
    wrong = {number: numbers[number] for number in asked if numbers[number] != 1}
    left = effects_of(read_ledger(walked.spec.run.effects)).outstanding
    return [
        *(
            f"command {each} ({walked.asked[each - 1]}) took effect {count} times"
            for each, count in wrong.items()
        ),
        *(f"{entry} was not decided again" for entry in left),
    ]


def _steps(walked: Walked) -> list[str]:
    steps = Timeline.load(walked.spec.run.timeline).lineage().losses()[0]
    # A step in which a task was given up has a number, and no loss.
    held = effects_of(read_ledger(walked.spec.run.effects)).entries
    given_up = {entry["step"] - 1 for entry in held if entry["kind"] == "SetAside"} - set(steps)
    wanted = [step for step in range(max(steps, default=-1) + 1) if step not in given_up]
    return [] if steps == wanted else [f"steps were told as {steps}, and {sorted(given_up)} were given up"]


def _rests(walked: Walked) -> list[str]:
    left = [path.name for path in walked.spec.run.path.rglob("*partial*")]
    return [f"{left} were left behind"] if left else []


def _replay(walked: Walked, folder: Path) -> list[str]:
    # As on a CPU, wherever shards lay in the run.
    again = replace(walked.spec, run=RunFolder(folder).create(), replays=walked.spec.run, room=None)
    keep_spec(again, ranks=walked.ranks[0])
    for ranks in recorded_ranks(walked.spec.run):
        results = World(ranks).run(lambda groups: _one_rank(groups, again, Nobody(), 1))
        if wrong := [_words(result) for result in results if not isinstance(result, tuple)]:
            return [f"the replay failed: {wrong[0]}"]
    told, repeated = (Timeline.load(run.timeline).lineage().losses() for run in (walked.spec.run, again.run))
    if told != repeated:
        return [f"losses were told as {told}, and the replay has {repeated}"]
    compared = compare_runs(walked.spec.run, again.run)
    return [f"the replay differs: {each}" for each in compared if not each.same]
