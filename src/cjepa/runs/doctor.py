"""`cjepa doctor`: what this machine offers, and whether a run can be continued."""

import json
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cjepa.build import CHECKPOINTS, read_config
from cjepa.runs.pretraining import DATA
from cjepa.training.checkpoint import CheckpointStore

PACKAGES = ("cjepa", "torch", "numpy", "pillow", "pydantic", "safetensors", "scikit-learn", "matplotlib")
EXTRAS = {
    "demo": "scikit-image",
    "evaluation": "timm",
    "detection": "pycocotools",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Optional extras of the package and the distribution that each brings."""
_SIDE, _REPEATS = 768, 5


def environment() -> list[tuple[str, str]]:
    """What there is, as (name, finding)."""
    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    rows += [(name, _version(name) or "not installed as a package") for name in PACKAGES]
    rows += [("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used")]
    rows += [("GPU", text) for text in _gpus()] or [("GPU", "none: training runs on the CPU")]
    rows += [("bfloat16", _bfloat16())]
    for extra, package in EXTRAS.items():
        found = _version(package)
        text = f"{package} {found}" if found else f'not installed; to have it: pip install "cjepa[{extra}]"'
        rows.append((f"extra {extra}", text))
    return rows


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = [f"cuda:{index} {each.name}, {each.total_memory / 2**30:.0f} GiB" for index, each in enumerate(found)]
    if torch.backends.mps.is_available():
        names.append("mps (Apple); use training.device=mps")
    return names


def _bfloat16() -> str:
    """How much faster matrix products are in bfloat16, measured, with what to do about it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gain = _seconds(torch.float32, device) / _seconds(torch.bfloat16, device)
    advice = "keep the default" if gain > 1.2 else "training.precision=float32 is no slower here"
    return f"matrix products are {gain:.1f} times as fast as in float32 on {device}: {advice}"


def _seconds(kind: torch.dtype, device: torch.device) -> float:
    matrix = torch.ones(_SIDE, _SIDE, dtype=kind, device=device)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True)
class Diagnosis:
    """The checkpoints of a run with what is wrong with each, oldest first, and how far the run is."""

    checkpoints: dict[int, list[str]]
    steps: int | None
    images: int | None

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
    store = CheckpointStore(run / CHECKPOINTS)
    path = run / DATA
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Diagnosis({step: store.verify(step) for step in store.steps()}, data.get("steps"), data.get("images"))
