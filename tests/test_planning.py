"""`cjepa plan`: what it says of this machine, of one that is elsewhere, and what it refuses."""

from dataclasses import replace

import pytest

from cjepa.cli_text import plan_text
from cjepa.errors import InputError
from cjepa.runs import plan
from tests.training.conftest import tiny_config


def test_this_machine_is_measured() -> None:
    made = plan(tiny_config(), "cpu", 1, images=1000)
    assert made.seconds_per_image is not None
    assert made.seconds_per_epoch == pytest.approx(1000 * made.seconds_per_image)
    assert made.engine == "none"
    assert made.micro_batch == made.batch_size == 32
    assert made.process < made.memory < made.available
    assert "images/s" in plan_text(made)


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
