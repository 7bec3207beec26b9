"""What has to hold on a GPU as on a CPU, for either: networks, tasks, and work for ranks of their own.

The tests in tests/gpu train on "cuda". With REHEARSAL_KIT_GPU_TESTS_ON=cpu they train on CPUs instead, which
proves all of them but what only CUDA can execute.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from ranks import alone, small_job

from rehearsal_kit.base.child_processes import variables_set
from rehearsal_kit.base.nccl_variables import NCCL_VARIABLES
from rehearsal_kit.base.network_interfaces import bound_to, interface_named, strays
from rehearsal_kit.base.process_groups import Meeting, ProcessGroups, _join, leave
from rehearsal_kit.base.processes import listeners
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.bench.gpu.case_measurement import CaseMeasurement, lay_out
from rehearsal_kit.bench.gpu.cases import ALL, QUICK, QUICK_CASES
from rehearsal_kit.bench.gpu.findings import Counted
from rehearsal_kit.bench.gpu.synchronisations import heard
from rehearsal_kit.buffer.distributed_buffer import BufferDevice, DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.cluster.rank_device import identity_of
from rehearsal_kit.data.shard_room import ShardRoom
from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.data.tensor_tasks import TensorTask, split_instances, write_task
from rehearsal_kit.data.training_shard import AS_READ, ON_DEVICE, PINNED, TrainingShard
from rehearsal_kit.learning.gpu_arithmetic import gpu_arithmetic
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.record.commands import FinishStream
from rehearsal_kit.record.records import Evaluated

KIND = os.environ.get("REHEARSAL_KIT_GPU_TESTS_ON", "cuda")
DEVICE = "cuda:0" if KIND == "cuda" else "cpu"
CLASSES, SIDE, HELD_OUT = 4, 16, 40
NAP_S = 0.005


class Slowed(torch.nn.Module):
    """Another network that pauses in every training step: small ones are through before they are killed."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> Any:
        if self.training:
            time.sleep(NAP_S)
        return self.network(inputs)


def image_tasks(sizes: Sequence[int]) -> list[TensorTask]:
    """Images of four classes, one task of each size."""
    random = torch.Generator().manual_seed(5)
    centres = torch.randn(CLASSES, 1, SIDE, SIDE, generator=random)

    def labelled(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % CLASSES
        return centres[labels] + 2 * torch.randn(count, 1, SIDE, SIDE, generator=random), labels

    return [
        task
        for size in sizes
        for task in split_instances(*labelled(size), tasks=1, test=labelled(HELD_OUT), seed=1)
    ]


def frame_tasks(sizes: Sequence[int]) -> list[TensorTask]:
    """Frames with amplitude and phase, one task of each size."""
    random = torch.Generator().manual_seed(5)

    def frames(count: int) -> dict[str, torch.Tensor]:
        fields = ("diffraction", "amplitude", "phase")
        return {name: torch.rand(count, 1, SIDE, SIDE, generator=random) for name in fields}

    return [
        TensorTask(
            name=f"frames {number}",
            inputs="diffraction",
            training=frames(size),
            watched=frames(HELD_OUT),
            test=frames(HELD_OUT),
        )
        for number, size in enumerate(sizes)
    ]


SUBJECTS: dict[str, tuple[Callable[..., torch.nn.Module], Callable[[Sequence[int]], list[TensorTask]]]] = {
    "ConvNet": (lambda seed=0: ConvNet(classes=CLASSES, width=8, seed=seed), image_tasks),
    "ResNet": (
        lambda seed=0: ResNet(depth=18, classes=CLASSES, channels=1, width=8, stem="small", seed=seed),
        image_tasks,
    ),
    "PtychoNN": (lambda seed=0: PtychoNN(size="small", seed=seed), frame_tasks),
}
"""A network and its tasks, by name: with bilinear doubling, with means over regions, with batch norm."""


def synchronisations(groups: ProcessGroups, folder: Path) -> dict[str, Counted]:
    """For ranks of their own: how often steps of each strategy wait for the device."""
    made = CaseMeasurement(
        case=QUICK_CASES[0], effort=QUICK, groups=groups, device=DEVICE, folder=folder / "case"
    )
    lay_out(made.case, made.folder, ranks=1)
    with gpu_arithmetic(DEVICE, deterministic=True):
        return {strategy.name: made.counted(strategy) for strategy in ALL}


def mini_batches(_: ProcessGroups, folder: Path) -> dict[str, tuple[str, bool, dict[str, int]]]:
    """For ranks of their own: mini-batches of shards, by the memory that there is said to be for them.

    Of each shard where it came to lie, whether the mini-batches are those of the CPU bit for bit, and how
    often the host has waited for the device until they were under way, by line.
    """
    (task,) = frame_tasks([50])
    samples = {**task.training, "sample_id": torch.arange(50)}
    rooms = {
        ON_DEVICE: ShardRoom(lambda: 10**12, lambda: 0, block_bytes=64_000),
        PINNED: ShardRoom(lambda: 0, lambda: 10**12, block_bytes=64_000, pinned_row_bytes=0),
        AS_READ: ShardRoom(lambda: 0, lambda: 0),
        "what there is": ShardRoom.of(DEVICE, ranks=1),
    }
    found = {}
    for name, room in rooms.items():
        here, there = (
            TaskLoader(0, [0], shard, largest=50, epochs=3, batch=8, key=(3, 0))
            for shard in (TrainingShard(samples), TrainingShard(samples, device=DEVICE, room=room))
        )
        pairs = []
        with heard(DEVICE) as waited:
            while not here.done:
                pairs.append((here.next(), there.next()))
        same = all(
            torch.equal(tensor, came[each].cpu())
            for expected, came in pairs
            for each, tensor in expected.items()
        )
        found[name] = (there.shard.where, same and there.done, dict(waited.here))
    return found


BUFFERS = {
    "as on a CPU": None,
    "on the device": ShardRoom(lambda: 10**12, lambda: 0, known_after=3, block_bytes=20_000),
    "in host memory": ShardRoom(lambda: 0, lambda: 0, known_after=3),
}
"""What room there is said to be for the rows of a buffer."""


def representatives(
    groups: ProcessGroups, devices: Sequence[str], folder: Path
) -> dict[str, tuple[tuple[int, ...], list[str], str, dict[str, int]]]:
    """For ranks of their own: what they draw from buffers, by the memory that is said to be there for them.

    Of each where the rows of all ranks lie in the end, a digest of the representatives of every step, one of
    the file of a checkpoint, and how often the thread that trains has waited for the device, by line.
    """
    device = devices[groups.rank]
    settings = Rehearsal(representatives=6, distillation=2, candidates=3, capacity=24 * groups.ranks)
    found = {}
    for name, room in BUFFERS.items():
        drawn = []
        with DistributedBuffer(
            RowLayout.of(_offered(groups.rank, 0, "cpu", 0)),
            settings,
            seed=3,
            exchange=GroupExchange(groups),
            device=BufferDevice(device, room),
        ) as buffer:
            offered = [_offered(groups.rank, step, device, 8 - groups.rank) for step in range(24)]
            with heard(device) as waited:
                for step, samples in enumerate(offered):
                    drawn.append(buffer.advance())
                    buffer.offer(samples, group=step // 6, copy=False)
            if groups.rank == 0:
                (folder / name).mkdir()
            groups.barrier()
            buffer.save(folder / name)
        (shard,) = (folder / name).glob(f"buffer-{groups.rank:05d}-*")
        parts = [part for each in drawn[1:] for part in (each.samples, each.distillation)]
        numbers = [part for each in drawn[1:] for part in each.numbers]
        digests = [_digest(part, ["image", "label", "outputs", "sample_id"]) for part in parts]
        digests += [_digest(part, ["label", "sample_id"]) for part in numbers]
        told = hashlib.sha256(shard.read_bytes()).hexdigest()
        found[name] = (buffer.placed, digests, told, dict(waited.here))
    return found


def _offered(rank: int, step: int, device: str, count: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(97 * step + rank)
    there = {
        "image": torch.rand(count, 1, SIDE, SIDE, generator=random),
        "label": torch.arange(count) % CLASSES,
        "outputs": torch.rand(count, CLASSES, generator=random).half(),
    }
    identity = {"sample_id": 1000 * rank + 10 * step + torch.arange(count)}
    return {**{name: tensor.to(device) for name, tensor in there.items()}, **identity}


def _digest(samples: Mapping[str, torch.Tensor], names: Sequence[str]) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update(samples[name].cpu().numpy().tobytes())
    return found.hexdigest()


def layouts(groups: ProcessGroups, _: Path) -> dict[str, tuple[bool, bool, bool]]:
    """For ranks of their own: how networks lie in memory after some steps with the precision of the device.

    Of each whether its convolutions lie by channels, whether gradients and the state of the optimizer lie as
    the parameters do, and whether what is copied for a checkpoint is of that moment, though steps follow.
    """
    found = {}
    with gpu_arithmetic(DEVICE, deterministic=True):
        for name, (build, tasks_of) in SUBJECTS.items():
            (task,) = tasks_of([16])
            learner = Learner(build(), Training(average=0.9), device=DEVICE, groups=groups)
            learner.know(learner.meet(task.training, task.inputs))
            batch = MiniBatch({each: t.to(DEVICE) for each, t in task.training.items()}, {}, {})

            def train(learner: Learner = learner, batch: MiniBatch = batch) -> None:
                for step in range(3):
                    assert not learner.step(batch, strategy=Incremental(), step=step).trouble

            train()
            then, copied = learner.state.tensors(), learner.state.copied()
            train()
            now = copied()
            convolutions = [part for part in learner.network.modules() if isinstance(part, torch.nn.Conv2d)]
            by_channels = {part.weight.stride(1) == 1 < part.weight[0, 0].numel() for part in convolutions}
            beside = [(p, each) for p in learner.network.parameters() for each in _beside(learner, p)]
            found[name] = (
                by_channels == {True},
                all(each.stride() == parameter.stride() for parameter, each in beside),
                all(torch.equal(now[each], tensor) for each, tensor in then.items()),
            )
    return found


def _beside(learner: Learner, parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """What a step has beside a parameter, of its shape."""
    state = learner.state.optimizer.state[parameter].values()
    those = [parameter.grad, *(each for each in state if isinstance(each, torch.Tensor))]
    return [each for each in those if each is not None and each.shape == parameter.shape]


def evaluations(
    groups: ProcessGroups, subject: str, device: str, folder: Path, seeds: Sequence[int], epochs: int
) -> list[list[Evaluated]]:
    """For ranks of their own: what a run tells of its test samples, for each seed."""
    build, tasks_of = SUBJECTS[subject]
    found = []
    with gpu_arithmetic(device, deterministic=True):
        for seed in seeds:
            here = folder / f"{subject} {seed} {device.partition(':')[0]}"
            here.mkdir()
            tasks = [write_task(task, here / f"{task.name}.h5") for task in tasks_of((96, 96))]
            spec = small_job(
                here / "run",
                seed=seed,
                network=build(seed=seed),
                training=Training(
                    batch=8, epochs=epochs, learning_rate=3e-3, precision="float32", scaling="none"
                ),
                device=device,
            )
            outcome, timeline, _ = alone(spec, *tasks, FinishStream())
            assert outcome == "finished"
            found.append([each for each in timeline.records(Evaluated) if each.split == "test"])
    return found


def generations(_: ProcessGroups, folder: Path) -> list[tuple[str, float, float, list[str]]]:
    """For ranks of their own: the groups of two generations, one after the other, as several ranks make them.

    Of each the backend, a sum on the device, one on the CPU, and where it listens beyond loopback.
    """
    found = []
    for number in range(2):
        meeting = Meeting(
            rendezvous=folder / f"rendezvous {number}",
            nonce="test",
            rank=0,
            ranks=1,
            device=DEVICE,
            gpu=identity_of(DEVICE),
        )
        with bound_to(meeting.address), variables_set(NCCL_VARIABLES):
            groups = _join(meeting)
            there, here = (float(groups.sum(torch.ones(1000, device=d)).sum()) for d in (DEVICE, "cpu"))
            beyond = strays(listeners([psutil.Process()]), interface_named(None))
            found.append((torch.distributed.get_backend_config(), there, here, beyond))
            leave()
    return found
