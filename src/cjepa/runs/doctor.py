"""`cjepa doctor`: what this machine offers, and whether a run can be continued."""

import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cjepa.build import CHECKPOINTS, read_config
from cjepa.errors import InputError
from cjepa.models.kernels import chosen_precision
from cjepa.runs.continuing import read_data
from cjepa.runs.pretraining import DIVERGED, LOG, MADE_WITH, UNREADABLE
from cjepa.training.checkpoint import UNFINISHED, CheckpointStore
from cjepa.training.device_memory import device_memory
from cjepa.training.state import Progressed

PACKAGES = ("cjepa", "torch", "numpy", "pillow", "pydantic", "safetensors", "scikit-learn", "matplotlib")
EXTRAS = {
    "demo": ("scikit-image",),
    "evaluation": ("torchvision", "timm"),
    "detection": ("torchvision", "timm", "pycocotools"),
    "torchvision": ("torchvision",),
    "parquet": ("pyarrow",),
    "hub": ("huggingface_hub",),
    "huggingface": ("huggingface_hub", "pyarrow"),
    "transformers": ("transformers",),
    "timm": ("timm",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""Optional extras of the package and the distributions that each brings."""
_SIDE, _REPEATS, _ENOUGH = 768, 5, 0.2
"""Side of the matrices whose product is timed, how often at most, and the seconds after which it is not again."""


def environment() -> list[tuple[str, str]]:
    """What there is, as (name, finding)."""
    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    rows += [(name, _version(name) or "not installed as a package") for name in PACKAGES]
    memory = f"{device_memory(torch.device('cpu')) / 2**30:.0f} GiB"
    rows += [("CPU", f"{_cores()}, {torch.get_num_threads()} threads used, {memory} of memory for this process")]
    rows += [("GPU", text) for text in _gpus()] or [("GPU", "none: training runs on the CPU")]
    rows += [("bfloat16", _bfloat16())]
    return rows + [(f"extra {extra}", _extra(extra)) for extra in EXTRAS]


def _cores() -> str:
    """Those of the machine, and how many of them a scheduler or container leaves to this process."""
    there = os.cpu_count() or 1
    free = len(os.sched_getaffinity(0)) if sys.platform == "linux" else there
    return f"{there} cores" if free >= there else f"{free} of {there} cores"


def _extra(name: str) -> str:
    """The versions of what an extra brings, or what of it is missing."""
    found = {package: _version(package) for package in EXTRAS[name]}
    missing = [package for package, number in found.items() if number is None]
    if missing:
        return f'{", ".join(missing)} not installed; to have it: pip install "cjepa[{name}]"'
    return ", ".join(f"{package} {number}" for package, number in found.items())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = [f"cuda:{index} {each.name}, {each.total_memory / 2**30:.0f} GiB" for index, each in enumerate(found)]
    if torch.backends.mps.is_available():
        names.append("mps (Apple): never tested; training.device=mps tries it")
    return names


def _bfloat16() -> str:
    """How much faster matrix products are in bfloat16, measured, with what to do about it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gain = _seconds(torch.float32, device) / _seconds(torch.bfloat16, device)
    measured = f"{gain:.2g} times as fast as" if gain >= 1 else f"{1 / gain:.2g} times slower than"
    taken = f"training.precision=auto takes {chosen_precision('auto', device)} here"
    return f"matrix products are {measured} in float32 on {device}; {taken}"


def _seconds(kind: torch.dtype, device: torch.device) -> float:
    matrix = torch.ones(_SIDE, _SIDE, dtype=kind, device=device)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        times.append(time.perf_counter() - start)
        if sum(times) > _ENOUGH:  # a second each in bfloat16 on a processor without instructions for it
            break
    return min(times)


@dataclass(frozen=True)
class Diagnosis:
    """The checkpoints of a run with what is wrong with each, oldest first, how far the run is, and what it met.

    notes: unreadable images, skipped steps, the dump of a divergence, what a killed save left: one sentence each.
    """

    checkpoints: dict[int, list[str]]
    steps: int | None
    images: int | None
    notes: list[str]

    @property
    def used(self) -> int | None:
        """The step of the checkpoint that continuing or evaluating uses: the newest valid one."""
        return max((step for step, problems in self.checkpoints.items() if not problems), default=None)

    @property
    def complete(self) -> bool:
        """Whether the last step was taken and its checkpoint is valid."""
        return self.used is not None and self.used == self.steps


def diagnose(run: Path) -> Diagnosis:
    """Verify every checkpoint of a run folder; InputError when it is none."""
    read_config(run)
    store, data = CheckpointStore(run / CHECKPOINTS), read_data(run)
    checkpoints = {step: store.verify(step) for step in store.steps()}
    notes = [*_met(run, store, checkpoints), *_left_behind(run, store)]
    return Diagnosis(checkpoints, data.steps, data.images, notes)


def _met(run: Path, store: CheckpointStore, checkpoints: dict[int, list[str]]) -> list[str]:
    """What the newest valid checkpoint says of the way to it."""
    valid = [step for step, problems in checkpoints.items() if not problems]
    if not valid:
        return []
    checkpoint = store.load(valid[-1])
    try:
        progress = Progressed.of(checkpoint)
    except InputError as error:
        return [f"it cannot be continued: {error}"]
    notes = []
    if progress.unreadable:
        notes.append(f"{len(progress.unreadable)} unreadable images were replaced; they are in {run / UNREADABLE}")
    if progress.skipped or progress.spikes:
        notes.append(f"{progress.skipped} steps were skipped and {progress.spikes} were spikes; see {run / LOG}")
    if progress.left_out:
        notes.append(f"steps left out after spikes: {', '.join(map(str, progress.left_out))}")
    made_with = checkpoint.state.get(MADE_WITH)
    if isinstance(made_with, dict):
        notes.append("made with " + ", ".join(f"{name} {value}" for name, value in made_with.items()))
    return notes


def _left_behind(run: Path, store: CheckpointStore) -> list[str]:
    """A dump, and the remains of a killed save."""
    notes = []
    dumps = CheckpointStore(run / DIVERGED)
    for step in dumps.steps():
        problems = dumps.verify(step)
        state = (
            f"damaged: {'; '.join(problems)}"
            if problems
            else f"`cjepa replay {shlex.quote(str(run))}` takes those steps again"
        )
        notes.append(f"the run gave up at step {step} and left a dump; {state}")
    if store.folder.exists():
        remains = sum(entry.name.startswith(UNFINISHED) for entry in store.folder.iterdir())
        if remains:
            notes.append(f"a killed save left {remains} folders behind; the next start or save clears them")
    return notes
