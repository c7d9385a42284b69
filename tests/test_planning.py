"""`cjepa plan`: what it says of this machine, of one that is elsewhere, and what it refuses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cjepa import data
from cjepa.cli_text import plan_text
from cjepa.config.presets import resolve
from cjepa.errors import InputError
from cjepa.runs import images_here, plan, planning
from tests.training.conftest import tiny_config


def test_this_machine_is_measured() -> None:
    made = plan(tiny_config(), "cpu", 1, images=1000)
    assert made.seconds_per_image is not None
    assert made.seconds_per_epoch == pytest.approx(1000 * made.seconds_per_image)
    assert made.engine == "none"
    assert made.micro_batch == made.batch_size == 32
    assert made.process < made.memory < made.available
    assert "images/s" in plan_text(made)


@pytest.mark.parametrize(("step", "timed"), [(0.1, [8, 32, 100]), (0.3, [8, 32]), (1.0, [8])])
def test_brief_steps_are_timed_with_more_images(monkeypatch: pytest.MonkeyPatch, step: float, timed: list[int]) -> None:
    """The seconds of a step here grow with its images, from those of 8."""
    taken: list[int] = []

    def steps(_config: object, _device: object, images: int, steps: Sequence[int]) -> list[float]:
        taken.append(images)
        return [9.0, *[step + 0.01 * images] * (len(steps) - 1)]

    monkeypatch.setattr(planning, "_take_steps", steps)
    monkeypatch.setattr(planning, "_loaded", lambda *_: 0.0)
    made = plan(tiny_config(training={"batch_size": 100}), "cpu", 1, images=None)
    assert taken == timed
    assert made.seconds_per_image == pytest.approx(step / timed[-1] + 0.01)


def test_images_are_counted_where_they_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert images_here(resolve("small-96", [f"data={tmp_path}"])) == 3
    assert images_here(resolve("small-96", [f"data={tmp_path / 'missing'}"])) is None

    def download(*_: object) -> None:
        raise AssertionError("nothing is downloaded for a plan")

    monkeypatch.setattr(data, "open_huggingface", download)
    changes = ["data.source={name: huggingface, dataset: somebody/something}"]
    assert images_here(resolve("small-96", changes)) is None


def test_threads_are_those_of_the_run() -> None:
    before = torch.get_num_threads()
    try:
        plan(tiny_config(training={"threads": 1}), "cpu", 1, images=None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_elsewhere_is_computed_only() -> None:
    made = plan(tiny_config(training={"precision": "bfloat16"}), "cuda:A100", 8, images=1000)
    assert made.engine == "ddp"
    assert made.micro_batch == made.batch_size // 8
    assert made.seconds_per_epoch == pytest.approx(1000 * made.footprint.operations / 312e12 / 8)
    assert "at most" in plan_text(made)
    assert "time            at least" in plan_text(made)


@pytest.mark.parametrize(("device", "precision"), [("cuda:A100", "float32"), ("cuda:V100", "bfloat16")])
def test_a_speed_that_nobody_states_is_not_made_up(device: str, precision: str) -> None:
    made = plan(tiny_config(training={"precision": precision}), device, 8, images=1000)
    assert made.seconds_per_epoch is None
    assert "time            unknown" in plan_text(made)


@pytest.mark.parametrize(("device", "precision"), [("cuda:A100", "bfloat16"), ("cuda:V100", "float32")])
def test_an_open_precision_is_that_of_the_device(device: str, precision: str) -> None:
    left_open, given = (
        plan(tiny_config(training={"precision": each}), device, 8, images=1000) for each in ("auto", precision)
    )
    assert left_open == given


def test_what_does_not_fit_is_sharded_and_taken_in_parts() -> None:
    big = tiny_config(model={"encoder": {"width": 4096, "depth": 48, "heads": 32, "patch_size": 2}})
    made = plan(big, "cuda:A100", 8, images=None)
    assert made.engine == "fsdp"
    assert made.memory < 8 * made.footprint.memory(4, 4)


@pytest.mark.parametrize(
    ("training", "ranks", "advice"),
    [
        (
            {"micro_batch": 32},
            1,
            "a training.micro_batch below 32 or training.checkpoint_activations=true or more devices with "
            "training.parallel=fsdp or a smaller model",
        ),
        ({"micro_batch": 1, "checkpoint_activations": True, "parallel": "fsdp"}, 8, "a smaller model"),
        ({"micro_batch": 1, "parallel": "ddp"}, 8, "training.checkpoint_activations=true or training.parallel=fsdp"),
    ],
)
def test_what_does_not_fit_is_told_what_it_lacks(training: dict[str, object], ranks: int, advice: str) -> None:
    made = replace(plan(tiny_config(training=training), "cuda:T4", ranks, images=None), available=1.0)
    assert f"it does not fit: {advice}" in plan_text(made)


@pytest.mark.parametrize(("device", "ranks", "message"), [("cuda:Z9", 1, "cuda:H100"), ("cpu", 5, "multiple of 5")])
def test_nonsense_is_refused(device: str, ranks: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(tiny_config(), device, ranks, images=None)
