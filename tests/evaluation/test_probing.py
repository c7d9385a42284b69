"""Probes that train heads on crops: against scikit-learn, resumed to the bit, and their known scores."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cjepa.errors import DivergedError, InputError, StoppedEarly, WorkerError
from cjepa.evaluation import fitting
from cjepa.evaluation.attentive import AttentiveConfig, AttentiveHead, open_attentive
from cjepa.evaluation.fitting import SCALE, Plan, fit, warmup_cosine
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.linear_sgd import LinearSgdConfig, open_linear_sgd
from cjepa.evaluation.work import Work
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.runs.keeping import RunKeeper
from tests.evaluation.labelled_colours import labelled_colours, small_encoder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return labelled_colours(tmp_path_factory.mktemp("images"))


@pytest.fixture
def encoder() -> PretrainedEncoder:
    return small_encoder()


def linear_task(images: LabelledImages, **changes: object) -> tuple[LinearSgdConfig, LabelledImages]:
    keys = {"optimizer": "sgd", "epochs": 12, "warmup_epochs": 1, "batch_size": 20, "crop_scale": (0.5, 1.0)}
    return LinearSgdConfig.model_validate(keys | changes), images


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_linear_probe_learns_and_leaves_the_encoder_alone(
    images: LabelledImages, encoder: PretrainedEncoder, optimizer: str
) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    # LARS moves by a share of the weights' own size: so few steps need a large one.
    rates, epochs = ((0.3,), 12) if optimizer == "sgd" else ((30.0, 60.0), 30)
    task = open_linear_sgd(*linear_task(images, optimizer=optimizer, rates=rates, epochs=epochs))
    values = task.measure(encoder, Work())
    assert set(values) == {"linear_sgd", "linear_sgd_rate"}
    assert values["linear_sgd"] > 90  # chance is 33
    assert values["linear_sgd_rate"] in rates
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_attentive_probe_learns(images: LabelledImages, encoder: PretrainedEncoder) -> None:
    config = AttentiveConfig(rates=(3e-3,), epochs=10, batch_size=20)
    assert open_attentive(config, images).measure(encoder, Work())["attentive"] > 90


def test_validation_images_choose_the_rate_and_are_not_trained_on(
    images: LabelledImages, encoder: PretrainedEncoder
) -> None:
    config, _ = linear_task(images, rates=(1e-9, 0.3), validation_share=0.2)
    task = open_linear_sgd(config, images)
    train, validation = task._split()
    assert validation is not None
    assert set(train.names).isdisjoint(validation.names)
    assert np.bincount(validation.labels).tolist() == [4, 4, 4]
    assert task.measure(encoder, Work())["linear_sgd_rate"] == 0.3  # the other one does not move


def test_an_interrupted_probe_continues_to_the_bit(
    images: LabelledImages, encoder: PretrainedEncoder, tmp_path: Path
) -> None:
    task = open_linear_sgd(*linear_task(images, rates=(0.1, 0.3), optimizer="lars", epochs=6))
    whole = Heads()
    expected = task.measure(encoder, Work(keeper=whole))
    calls = iter([None] * 4 + ["SIGTERM"])
    keeper = RunKeeper(tmp_path, {"name": "probe"})
    with pytest.raises(StoppedEarly, match="stopped by SIGTERM after step 5 of 16"):
        task.measure(encoder, Work(keeper=keeper, stop=lambda: next(calls)))
    kept = keeper.newest(("heads", "optimizer"))
    assert kept is not None
    assert kept.step == 5
    assert task.measure(encoder, Work(keeper=keeper)) == expected
    keeper.remove()
    assert list(tmp_path.iterdir()) == []


class Heads:
    """A keeper that never has anything."""

    def newest(self, groups: tuple[str, ...]) -> None:
        return None

    def save(self, kept: object) -> None:
        raise AssertionError("nothing to save")


def quadratic(
    steps: int, build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> tuple[Plan[Tensor], nn.Linear]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    batches = torch.utils.data.TensorDataset(torch.randn(steps, 5, 3))
    dropout = nn.Dropout(0.5)
    return Plan(
        modules={"layer": layer},
        optimizer=build(list(layer.parameters())),
        batches=batches,  # type: ignore[arg-type]
        loss=lambda batch: dropout(layer(batch[0])).square().mean(),
        rate=lambda step: warmup_cosine(step, 2, steps),
        steps=steps,
        images=5,
    ), layer


@pytest.mark.parametrize(
    "build",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, 0.1),
    ],
)
def test_continuing_repeats_weights_moments_and_dropout(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    plan, expected = quadratic(12, build)
    fit(plan, Work())
    keeper = RunKeeper(tmp_path, {})
    asked = iter([None] * 6 + ["SIGINT"])
    plan, _ = quadratic(12, build)
    with pytest.raises(StoppedEarly):
        fit(plan, Work(keeper=keeper, stop=lambda: next(asked)))
    plan, continued = quadratic(12, build)
    fit(plan, Work(keeper=keeper))
    assert torch.equal(continued.weight, expected.weight)


class Broken(torch.utils.data.Dataset[Any]):
    """Batches of which that of step 2 cannot be made."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault = fault

    def __getitem__(self, step: int) -> tuple[Tensor]:
        if step == 2:
            self.fault()
        return (torch.ones(5, 3),)


def refuse() -> None:
    raise InputError("mask 7 has another size than its image")


@pytest.mark.parametrize(
    ("fault", "patience", "error", "message"),
    [
        (refuse, 600.0, InputError, "^mask 7 has another size than its image$"),
        (lambda: os._exit(3), 600.0, WorkerError, "ended with exit code 3 while reading the images of step 2;"),
        (lambda: time.sleep(60), 1.0, WorkerError, "no batch .* worker 0 while reading the images of step 2;"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_said_and_ends_the_fit(
    fault: Callable[[], object], patience: float, error: type[Exception], message: str
) -> None:
    plan, _ = quadratic(4, lambda parameters: torch.optim.SGD(parameters, 0.1))
    with pytest.raises(error, match=message):
        fit(replace(plan, batches=Broken(fault)), Work(workers=1, patience=patience))


def test_fitting_leaves_the_generator_alone() -> None:
    plan, _ = quadratic(3, lambda parameters: torch.optim.SGD(parameters, 0.1))
    state = torch.get_rng_state()
    fit(plan, Work())
    assert torch.equal(torch.get_rng_state(), state)


def test_any_seed_of_a_run_will_do() -> None:
    plan, _ = quadratic(3, lambda parameters: torch.optim.SGD(parameters, 0.1))
    fit(plan, Work(seed=2**63 - 1))


def test_rates_are_scaled_by_group() -> None:
    plan, layer = quadratic(1, lambda parameters: torch.optim.SGD([{"params": parameters, SCALE: 0.0}], 1.0))
    before = layer.weight.clone()
    fit(plan, Work())
    assert torch.equal(layer.weight, before)


def test_long_fits_save_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAVE_SECONDS", -1.0)
    keeper = RunKeeper(tmp_path, {})
    plan, _ = quadratic(4, lambda parameters: torch.optim.SGD(parameters, 0.1))
    fit(plan, Work(keeper=keeper))
    kept = keeper.newest(("layer", "optimizer"))
    assert kept is not None
    assert kept.step == 4


def test_damaged_saves_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAVE_SECONDS", -1.0)
    keeper = RunKeeper(tmp_path, {})
    plan, expected = quadratic(2, lambda parameters: torch.optim.SGD(parameters, 0.1))
    fit(plan, Work(keeper=keeper))
    for file in keeper.folder.rglob("*.safetensors"):
        file.write_bytes(b"")
    assert keeper.newest(("layer", "optimizer")) is None
    plan, again = quadratic(2, lambda parameters: torch.optim.SGD(parameters, 0.1))
    fit(plan, Work(keeper=keeper))
    assert torch.equal(again.weight, expected.weight)


def test_a_loss_that_is_not_finite_ends_the_fit() -> None:
    plan, layer = quadratic(2, lambda parameters: torch.optim.SGD(parameters, 0.1))
    nn.init.constant_(layer.weight, float("inf"))
    with pytest.raises(DivergedError, match="lower learning rate"):
        fit(plan, Work())


def test_the_schedule() -> None:
    factors = [warmup_cosine(step, 3, 11, final=0.1) for step in range(11)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[-1] == pytest.approx(0.1)
    assert factors[3:] == sorted(factors[3:], reverse=True)


def test_the_attentive_head_equals_torch_s_attention() -> None:
    torch.manual_seed(0)
    head = AttentiveHead(8, 3, 2)
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    patches = torch.randn(4, 5, 8)
    normed = head.norm_patches(patches)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([torch.eye(8), head.key_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([torch.zeros(8), head.key_value.bias]))
        reference.out_proj.weight.copy_(head.proj.weight)
        reference.out_proj.bias.copy_(head.proj.bias)
        query = head.query.expand(4, -1, -1)
        seen = query + reference(query, normed, normed)[0]
        seen = seen + head.mlp(head.norm_query(seen))
        torch.testing.assert_close(head(patches), head.classify(head.norm_out(seen[:, 0])))


def test_rates_are_for_the_batch_that_is_trained_on(images: LabelledImages) -> None:
    """60 images, 12 of them to choose the rate on: a batch holds 48, whatever batch_size says."""
    task = open_linear_sgd(*linear_task(images, rates=(0.1, 0.3), batch_size=1024, epochs=1, validation_share=0.2))
    scales: list[list[float]] = []

    def record(plan: Plan[Any], work: Work) -> None:
        assert plan.images == 48
        scales.append([group[SCALE] for group in plan.optimizer.param_groups])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cjepa.evaluation.probing.fit", record)
        task.measure(small_encoder(), Work())
    assert scales == [pytest.approx([rate * 48 / 256 for rate in (0.1, 0.1, 0.3, 0.3)])]


def test_heads_that_do_not_divide_the_width_are_refused(images: LabelledImages) -> None:
    message = "heads: 5 heads do not divide the encoder's width of 32; choose a divisor: 1, 2, 4, 8, 16, 32$"
    with pytest.raises(InputError, match=message):
        open_attentive(AttentiveConfig(heads=5), images).measure(small_encoder(), Work())


def test_lars_without_timm_is_refused(images: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm.optim.lars", None)
    with pytest.raises(InputError, match=r"LARS needs timm: pip install .* or use optimizer=sgd"):
        open_linear_sgd(*linear_task(images, optimizer="lars"))
