"""Images per second, model FLOPs utilisation and host synchronisations of one way to train one size of model.

    python -m benchmarks.throughput --size base --way cjepa-compiled --device cuda

prints one line of JSON. Ways: cjepa, the package's own trainer; cjepa-compiled, the same with every block compiled;
lightly, a step around lightly's I-JEPA modules with the same sizes, masks, images, optimizer and precision. Images lie
in pinned memory, and nothing is loaded. Operations of a step are those of training/footprint.py, for every way the
same: what the method needs, whatever a way computes besides.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.guard import peak_memory
from benchmarks.step import Bench, Case
from cjepa.build import footprint_of
from cjepa.config import RunConfig
from cjepa.models import EncoderConfig
from cjepa.models.blocks import Block
from cjepa.models.predictor import PredictorConfig
from cjepa.models.vit import SIZES
from cjepa.objectives import IJepaConfig
from cjepa.training.device_memory import USABLE, device_memory, resident_memory
from cjepa.training.environment import describe_environment
from cjepa.training.footprint import Footprint
from cjepa.types import Batch

WAYS = ("cjepa", "cjepa-compiled", "lightly")
NAMES = ("tiny", "small", "base", "large", "huge")
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "RTX 4090": 165e12}
"""Dense bfloat16 operations per second as the makers state them, by a part of the device's name; first match."""
SYNCHRONISING = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
    "aten::_local_scalar_dense",
)
"""Calls for which the host waits for the device; the last, the reading of a number, is seen on a CPU too."""
MOST_IMAGES = 1024
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
    memory = USABLE * device_memory(device) - (0.0 if device.type == "cuda" else resident_memory())
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


def ours(case: Case, device: torch.device, compiled: bool) -> tuple[Callable[[], object], Batch]:
    """A step of the package's trainer, and its batch."""
    bench = Bench(OurCase(**case.__dict__), device)
    if compiled:
        model = bench.trainer.model
        for part in (*model.learned.values(), model.target_encoder):
            for block in part.blocks:
                assert isinstance(block, Block)
                block.compile()
    batch = bench.batch.pin_memory() if device.type == "cuda" else bench.batch
    return partial(bench.trainer.take_step, batch), batch


class Lightly:
    """A training step around lightly's I-JEPA modules."""

    def __init__(self, case: Case, device: torch.device, batch: Batch) -> None:
        from lightly.models.modules import IJEPAPredictorTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer

        encoder, predictor = case.encoder, case.predictor
        transformer = VisionTransformer(
            img_size=case.image_size,
            patch_size=encoder.patch_size,
            embed_dim=encoder.width,
            depth=encoder.depth,
            num_heads=encoder.heads,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            num_classes=0,
        )
        self.student = MaskedVisionTransformerTIMM(vit=transformer).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = IJEPAPredictorTIMM(
            num_patches=transformer.patch_embed.num_patches,
            depth=predictor.blocks(encoder.width),
            mlp_dim=encoder.width,
            predictor_embed_dim=predictor.width,
            num_heads=predictor.heads or encoder.heads,
        ).to(device)
        learned = [p for part in (self.student, self.predictor) for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)
        self.device, self.batch = device, batch

    def step(self) -> float:
        """Take one; its loss."""
        from lightly.models import utils

        images = self.batch.images.to(self.device, non_blocking=True).float() / 255
        masks = self.batch.masks.to(self.device)
        context, targets = masks.context, list(masks.targets.unbind(1))
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                embedded = self.teacher.encode(images)
                wanted = utils.apply_masks(functional.layer_norm(embedded, embedded.shape[-1:]), targets)
            predicted = self.predictor(self.student.encode(images, idx_keep=context), [context], targets)
            loss = functional.smooth_l1_loss(predicted, wanted)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        utils.update_momentum(self.student, self.teacher, 0.996)
        return float(loss.detach())


def measure(
    case: Case, way: Literal["cjepa", "cjepa-compiled", "lightly"], device: torch.device, steps: int
) -> dict[str, Any]:
    """The row of a way: rate, utilisation where the device's peak is known, peak memory, synchronisations of a step."""
    case = replace(case, batch_size=fitting(case, device))
    step, batch = ours(case, device, way == "cjepa-compiled")
    if way == "lightly":
        step = Lightly(case, device, batch).step
    warmed = time.perf_counter()
    for _ in range(3):
        step()
    _finish(device)
    warmed = time.perf_counter() - warmed
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _finish(device)
    seconds = (time.perf_counter() - began) / steps
    needs = footprint_of(_ijepa(case), device.type)
    rate = case.batch_size / seconds
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return {
        "size": case.name,
        "way": way,
        "batch_size": case.batch_size,
        "steps": steps,
        "warm_up_seconds": warmed,
        "images_per_second": rate,
        "operations_per_image": needs.operations,
        "utilisation": utilisation(needs, rate, device),
        "peak_memory": memory,
        "synchronisations_per_step": synchronisations(step, device),
        "environment": describe_environment(),
    }


def utilisation(needs: Footprint, rate: float, device: torch.device) -> float | None:
    """Operations that the method needs over those that the device states; None where that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = next((operations for part, operations in PEAK.items() if part in name), None)
    return None if peak is None else needs.operations * rate / peak


def synchronisations(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """How often the host waits in a step, by call, as the profiler sees it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as seen:
        for _ in range(PROFILED):
            step()
    counted = {event.key: event.count for event in seen.key_averages()}
    return {name: counted.get(name, 0) / PROFILED for name in SYNCHRONISING}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=NAMES, default="base")
    parser.add_argument("--way", choices=WAYS, default="cjepa")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--toy", action="store_true", help="a toy instead of the size, to try the script")
    options = parser.parse_args()
    assert set(NAMES) <= set(SIZES)
    row = measure(case_of(options.size, options.toy), options.way, torch.device(options.device), options.steps)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
