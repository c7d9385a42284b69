"""Images per second, model FLOPs utilisation and host synchronisations of one way to train one size of model.

    python -m benchmarks.throughput --size base --way cjepa-compiled --device cuda

prints a line of JSON when the rate is known, and it again with the synchronisations. Ways: cjepa, the package's own
trainer; cjepa-compiled, the same with training.compile, for the lengths of this one batch; public, lightly and
stable-pretraining, steps around the modules of others (peer_steps.py) with the same sizes, masks, images and precision.
Images lie in pinned memory, and nothing is loaded. Operations of a step are those of training/footprint.py for the
masks of this batch, for every way the same: what the method needs, whatever a way computes besides.
"""

import argparse
import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.guard import Spread, peak_memory
from benchmarks.peer_steps import Lightly, PublicCode, StablePretraining, missing
from benchmarks.step import Case, operations_of, typical_batch
from cjepa.build import build_trainer, footprint_of
from cjepa.config import RunConfig
from cjepa.models import EncoderConfig
from cjepa.models.predictor import PredictorConfig
from cjepa.models.vit import SIZES
from cjepa.objectives import IJepaConfig
from cjepa.training.device_memory import USABLE, device_memory, occupied_memory
from cjepa.training.environment import describe_environment
from cjepa.types import Batch

WAYS = ("cjepa", "cjepa-compiled", "public", "lightly", "stable-pretraining")
NAMES = ("tiny", "small", "base", "large", "huge")
PEAK = {
    **{"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200 NVL": 835e12, "H200": 989e12},
    **{"A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "RTX 4090": 165e12},
}
"""Dense bfloat16 operations per second as the makers state them, by words of the device's name; first match."""
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls for which the host waits for the device."""
READING = "aten::_local_scalar_dense"
"""The reading of a number: all that a CPU shows of them. On a GPU it waits by one of the calls above, or not at all."""
MOST_IMAGES = 1024
BURSTS = 5
"""Timings of the same number of steps, whose quartiles are the spread."""
PROFILED = 3


def case_of(size: str, small: bool = False) -> Case:
    """The model of a named size on 224 px with the paper's predictor; small: a toy of the same kind, for the tests."""
    if small:
        toy = EncoderConfig(width=48, depth=2, heads=3, patch_size=8)
        return Case(size, toy, PredictorConfig(width=48, depth=1), 32, 4, "bfloat16")
    patch = 14 if size == "huge" else 16
    encoder = EncoderConfig(**EncoderConfig.named(size), patch_size=patch)
    predictor = PredictorConfig(width=384, depth=12 if size in ("large", "huge") else 6)
    return Case(size, encoder, predictor, 224, MOST_IMAGES, "bfloat16")


def fitting(case: Case, device: torch.device) -> int:
    """The largest power of two of images that the formula of the footprint expects to fit, MOST_IMAGES at most."""
    needs = footprint_of(_ijepa(case), device.type)
    # As the trainer plans: a batch that it thinks too large it would take in parts, which is another step.
    memory = USABLE * device_memory(device) - occupied_memory(device)
    batch = min(case.batch_size, MOST_IMAGES)
    while batch > 2 and needs.memory(batch, batch) > memory:
        batch //= 2
    return batch


def _ijepa(case: Case) -> RunConfig:
    """Plain I-JEPA, which is what the peers have; our regularisers cost the projector."""
    return case.config.model_copy(update={"objective": IJepaConfig()})


class OurCase(Case):
    """A case whose objective is I-JEPA's."""

    @property
    def config(self) -> RunConfig:
        """The run of the case without a regulariser."""
        return _ijepa(Case(**self.__dict__))


def step_of(case: Case, way: str, device: torch.device, batch: Batch, reference: Path | None) -> Callable[[], object]:
    """A step of a way, on a batch."""
    case = OurCase(**case.__dict__)
    if way == "public":
        assert reference is not None
        return PublicCode(case, device, batch, reference).step
    if way == "lightly":
        return Lightly(case, device, batch).step
    if way == "stable-pretraining":
        return StablePretraining(case, device, batch).step
    config = case.config
    training = config.training.model_copy(update={"compile": way == "cjepa-compiled"})
    config = config.model_copy(update={"training": training})
    return partial(build_trainer(config, 100 * case.batch_size, device).take_step, batch)


def measure(
    case: Case, way: str, device: torch.device, steps: int, reference: Path | None = None
) -> Iterator[dict[str, Any]]:
    """The row of a way: rate, utilisation where the device's peak is known, peak memory; then it again, with the host's
    waits in a step. What does not fit into the memory is tried with half of the batch."""
    case = replace(case, batch_size=fitting(case, device))
    while (found := _attempt(case, way, device, steps, reference)) is None:
        case = replace(case, batch_size=case.batch_size // 2)
    step, row = found
    yield row
    yield row | {"synchronisations_per_step": synchronisations(step, device)}


def _attempt(
    case: Case, way: str, device: torch.device, steps: int, reference: Path | None
) -> tuple[Callable[[], object], dict[str, Any]] | None:
    """A step and its row; None where the batch does not fit."""
    _release(device)
    batch = typical_batch(case)
    try:
        step = step_of(case, way, device, batch.pin_memory() if device.type == "cuda" else batch, reference)
        return step, _timed(case, way, device, steps, step, operations_of(case, batch.masks))
    except torch.OutOfMemoryError:
        if case.batch_size == 1:
            raise
    return None


def _timed(
    case: Case, way: str, device: torch.device, steps: int, step: Callable[[], object], operations: int
) -> dict[str, Any]:
    _release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    warmed = _seconds(step, 3, device)
    length = -(-steps // BURSTS)
    rates = [length * case.batch_size / _seconds(step, length, device) for _ in range(min(BURSTS, steps))]
    rate = Spread.of(rates)
    return {
        "size": case.name,
        "way": way,
        "device": _name(device),
        "batch_size": case.batch_size,
        "bursts": len(rates),
        "steps_of_a_burst": length,
        "warm_up_seconds": warmed,
        "images_per_second": rate.as_dict(),
        "operations_per_image": operations,
        "utilisation": utilisation(operations, rate.median, device),
        "of_the_fastest_product": operations * rate.median / fastest_product(device, torch.bfloat16),
        "peak_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory(),
        "synchronisations_per_step": None,
        "environment": describe_environment(),
    }


def _release(device: torch.device) -> None:
    """Give back what an attempt before left: its modules refer to each other in circles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Of so many steps one after the other."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _finish(device)
    return time.perf_counter() - began


def fastest_product(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of one large product: what the device does at best, whatever its maker says."""
    side = 8192 if device.type == "cuda" else 256
    factor = torch.randn(side, side, device=device, dtype=dtype)
    _seconds(lambda: factor @ factor, 3, device)
    return 2.0 * side**3 * 5 / min(_seconds(lambda: factor @ factor, 5, device) for _ in range(4))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def utilisation(operations: int, rate: float, device: torch.device) -> float | None:
    """Operations an image needs by the method over those that the device states; None where that is not known."""
    name = _name(device)
    # A slice of a GPU (MIG) has its name and not its speed.
    fitting = (peak for words, peak in PEAK.items() if re.search(rf"\b{words}\b", name) and "MIG" not in name)
    peak = next(fitting, None)
    return None if peak is None else operations * rate / peak


def synchronisations(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """How often the host waits in a step, by call, as the profiler sees it; less its own waiting when it ends."""
    names = SYNCHRONISING if device.type == "cuda" else (READING,)
    whole, empty = _counted(step, PROFILED, device), _counted(step, 0, device)
    return {name: (whole.get(name, 0) - empty.get(name, 0)) / PROFILED for name in names}


def _counted(step: Callable[[], object], steps: int, device: torch.device) -> dict[str, int]:
    """Calls in so many steps, by name."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as seen:
        for _ in range(steps):
            step()
    return {event.key: event.count for event in seen.key_averages()}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=NAMES, default="base")
    parser.add_argument("--way", choices=WAYS, default="cjepa")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/ijepa, for the way public")
    parser.add_argument("--toy", action="store_true", help="a toy instead of the size, to try the script")
    options = parser.parse_args()
    assert set(NAMES) <= set(SIZES)
    if absent := missing(options.way):
        parser.error(f"{', '.join(absent)} is not installed")
    if options.way == "public" and options.reference is None:
        parser.error("--reference: the checkout of facebookresearch/ijepa to measure")
    case, device = case_of(options.size, options.toy), torch.device(options.device)
    for row in measure(case, options.way, device, options.steps, options.reference):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
