"""The formulas of a step's needs, held against the model itself and against PyTorch's counter of operations."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cjepa.build import build_trainer, footprint_of
from cjepa.config import RunConfig
from cjepa.masking import build_sampler
from cjepa.objectives import TwoViewsConfig
from cjepa.training.footprint import Footprint
from cjepa.types import Batch, Masks
from tests.training.conftest import tiny_config

CPU = torch.device("cpu")


def predictor_of(attention: str, depth: int = 3) -> RunConfig:
    """A run most of whose operations are the predictor's."""
    encoder = {"width": 32, "depth": 1, "heads": 2, "patch_size": 2}
    predictor = {"width": 64, "depth": depth, "heads": 2, "attention": attention}
    return tiny_config(objective={"name": "ijepa"}, model={"encoder": encoder, "predictor": predictor})


CONFIGS = [
    tiny_config(objective={"name": "cjepa", "projector": {"width": 48}}),
    tiny_config(objective={"name": "cjepa-context", "projector": {"depth": 0}}),
    tiny_config(objective={"name": "ijepa"}),
    predictor_of("full"),
    predictor_of("one_way"),
    tiny_config(
        objective={"name": "cjepa-cosine"},
        model={"encoder": {"width": 1024, "depth": 1, "heads": 4, "patch_size": 4}, "predictor": {"width": 8}},
    ),
    tiny_config(objective={"name": "vicreg", "projector": {"width": 48}}),
    tiny_config(objective={"name": "simsiam", "projector": {"width": 48}, "hidden": 12}),
]


def step_of(config: RunConfig, images: int) -> tuple[Batch, Masks]:
    size = (images, 3, *config.data.size)
    masks = build_sampler(config.masking, config.grid, config.seed, config.training.batch_size)(0, 0, images)
    second = torch.zeros(size, dtype=torch.uint8) if isinstance(config.objective, TwoViewsConfig) else None
    return Batch(torch.zeros(size, dtype=torch.uint8), masks, torch.arange(images), second=second), masks


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.objective.name)
def test_parameters_are_those_of_the_model(config: RunConfig) -> None:
    trainer, needs = build_trainer(config, 256, CPU), footprint_of(config, "cpu")
    weights = sum(
        p.numel() for name, p in trainer.parameters.items() if not (name.startswith("objective") and p.ndim < 2)
    )
    assert needs.learned == weights, "but for the projector's biases and norms"
    assert needs.average == sum(p.numel() for p in trainer.model.target_encoder.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.objective.name)
def test_operations_are_what_the_counter_counts(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the longest step; VICReg's own matrices are what the formula leaves out."""
    monkeypatch.setattr("cjepa.build._PROBED", 1)
    monkeypatch.setattr("cjepa.models.kernels.takes_onednn", lambda *_: False)  # whose kernel it does not know either
    trainer, needs = build_trainer(config, 256, CPU), footprint_of(config, "cpu")
    batch, _ = step_of(config, 32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not know the CPU's kernel
        trainer.gradient(batch)
    assert counter.get_total_flops() / 32 == pytest.approx(needs.operations, rel=0.05)


def bytes_kept(config: RunConfig, images: int) -> int:
    """By autograd for the backward pass, weights included."""
    trainer = build_trainer(config, 256, CPU)
    batch, masks = step_of(config, images)
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trainer.model(batch.images.float(), masks)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("attention", ["full", "one_way"])
def test_two_more_blocks_of_the_predictor_keep_what_the_formula_says(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of an image; weights are those that one image more does not add."""
    monkeypatch.setattr("cjepa.build._PROBED", 1)
    few, many = predictor_of(attention, depth=2), predictor_of(attention, depth=4)
    counted = [bytes_kept(config, 9) - bytes_kept(config, 1) for config in (few, many)]
    expected = footprint_of(many, "cpu").activations - footprint_of(few, "cpu").activations
    assert (counted[1] - counted[0]) / 8 == pytest.approx(expected, rel=0.02)


def test_memory_has_its_parts() -> None:
    needs = Footprint(learned=100, average=40, operations=0, activations=10.0, embeddings=2.0, largest_block=5)
    state = 4 * (3 * 100 + 40)
    assert needs.memory(images=8, micro_batch=8) == state + 400, "gradients outweigh eight activations"
    assert needs.memory(images=80, micro_batch=80) == state + 800
    assert needs.memory(images=80, micro_batch=20) == state + 400 + 200 + 160
    assert needs.memory(images=8, micro_batch=8, shards=4) == state / 4 + 2 * 2 * 4 * 5 + 100


def test_the_micro_batch_is_the_largest_even_part_that_fits() -> None:
    needs = Footprint(learned=100, average=40, operations=0, activations=10.0, embeddings=2.0, largest_block=5)
    for images in (1, 7, 64, 100):
        for memory in (0.0, 2100.0, 2500.0, 1e6):
            size = needs.micro_batch(images, memory)
            assert size == 1 or needs.memory(images, size) <= memory
            larger = [-(-images // parts) for parts in range(1, images + 1) if -(-images // parts) > size]
            assert all(needs.memory(images, each) > memory for each in larger)
