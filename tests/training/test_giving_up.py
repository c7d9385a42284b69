"""Steps that are not finite: nothing changes, good weights are never replaced, and the end can be repeated."""

import json
import os
from pathlib import Path

import pytest
import torch

from cjepa.build import build_trainer
from cjepa.errors import DivergedError
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.recheck import UnreliableMachineError, fixed_order
from cjepa.types import Batch, Loss
from tests.training.conftest import tiny_config, training
from tests.training.harness import Run, assert_same_bits, everything


def broken_from(run: Run, step: int) -> None:
    """From this step on every image is NaN."""
    normalise = run.trainer.normalise

    def broken(images):  # type: ignore[no-untyped-def]
        normalised = normalise(images)
        return normalised * torch.nan if run.trainer.progress.step >= step else normalised

    run.trainer.normalise = broken


def test_the_dump_holds_the_weights_before_and_the_images_of_every_step(tmp_path: Path) -> None:
    run = Run(tiny_config(), tmp_path)
    broken_from(run, 5)
    with pytest.raises(DivergedError, match="not finite in 10 steps in a row, up to step") as error:
        run.train()
    assert error.value.exit_code == 3
    assert "diverged/step-00000005" in str(error.value)
    dump = CheckpointStore(tmp_path / "diverged").newest()
    assert dump is not None
    assert dump.step == 5
    trouble = dump.state["trouble"]
    assert [each["step"] for each in trouble] == list(range(5, 15))
    assert {each["loss"] for each in trouble} == {"nan"}
    for each in trouble:
        assert each["samples"] == run.stream[each["step"]].samples.tolist()
    assert len(dump.state["losses"]) == 5
    assert dump.state["seed"] == 0
    again = Run(tiny_config(), tmp_path / "again")
    again.trainer.restore(dump)
    assert_same_bits(everything(again.trainer), everything(run.trainer))


@pytest.mark.parametrize("evaluate_every", [100.0, 0.125])
def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path: Path, evaluate_every: float) -> None:
    """Also where they are measured before they are saved."""
    every = {"checkpoint_every": 0.125, "evaluate_every": evaluate_every}
    run = Run(tiny_config(training=training() | every), tmp_path)
    step = run.trainer.optimizer.step

    def poisonous():  # type: ignore[no-untyped-def]
        step()
        if run.trainer.progress.step == 6:
            next(iter(run.trainer.parameters.values())).data.fill_(torch.inf)

    run.trainer.optimizer.step = poisonous  # type: ignore[method-assign, assignment]
    with pytest.raises(DivergedError, match="weights were not finite"):
        run.train()
    newest = run.store.newest()
    assert newest is not None
    assert newest.step == 6, "the last one before the poison"
    assert all(tensor.isfinite().all() for tensor in newest.tensors("encoder").values())


def test_a_run_that_recovers_goes_on(tmp_path: Path) -> None:
    run = Run(tiny_config(), tmp_path)
    normalise = run.trainer.normalise
    bad = {4, 5, 11}
    run.trainer.normalise = lambda images: normalise(images) * (torch.nan if run.trainer.progress.step in bad else 1.0)
    run.trainer.config = run.trainer.config.model_copy(update={"most_skipped": 3})
    run.monitor.stream = Run(tiny_config(), tmp_path / "other").stream
    run.train()
    assert run.trainer.progress.skipped == 3
    assert run.trainer.progress.skipped_in_a_row == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row["split"] == "train"}
    assert {step for step, loss in losses.items() if loss is None} == {each + 1 for each in bad}


def test_a_machine_that_computes_two_gradients_is_noticed(tmp_path: Path) -> None:
    run = Run(tiny_config(training=training() | {"recheck_every": 4}), tmp_path)
    gradient, calls = run.trainer.gradient, []

    def flipping(batch):  # type: ignore[no-untyped-def]
        result = gradient(batch)
        calls.append(run.trainer.progress.step)
        if calls.count(8) == 2:
            grad = run.trainer.parameters["encoder.norm.weight"].grad
            assert grad is not None
            grad.view(torch.int32)[0] ^= 1
        return result

    run.trainer.gradient = flipping  # type: ignore[method-assign]
    with pytest.raises(UnreliableMachineError, match=r"step 8 computed twice .*encoder\.norm\.weight") as error:
        run.train()
    assert error.value.exit_code == 75
    assert sorted(step for step in set(calls) if calls.count(step) == 2) == [0, 4, 8]


def test_rechecking_changes_nothing(tmp_path: Path) -> None:
    plain = Run(tiny_config(training=training(epochs=1)), tmp_path / "plain")
    checked = Run(tiny_config(training=training(epochs=1) | {"recheck_every": 2}), tmp_path / "checked")
    plain.train()
    checked.train()
    assert_same_bits(everything(plain.trainer), everything(checked.trainer))


def test_on_a_gpu_both_gradients_are_added_up_in_the_same_order() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with fixed_order(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        # Where torch only warns, the gradient of its fused attention stays without an order (attention_backward.cu).
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with fixed_order(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("keys", "device", "workspace"),
    [
        ({"deterministic": True}, "cuda", ":4096:8"),
        ({"recheck_every": 2}, "cuda", ":4096:8"),
        ({}, "cuda", None),
        ({"deterministic": True}, "cpu", None),
    ],
)
def test_products_on_a_gpu_have_the_workspace_that_an_order_needs(
    keys: dict[str, object], device: str, workspace: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, _: module)  # there is no GPU to put it on
    monkeypatch.setattr("cjepa.build.device_memory", lambda _: 80 * 2.0**30)
    build_trainer(tiny_config(training=training() | keys), 64, torch.device(device))
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == workspace


@pytest.mark.parametrize(
    ("keys", "device", "fixed"),
    [
        ({"recheck_every": 2}, "cuda", [True, True, False, True, True]),
        ({"deterministic": True}, "cuda", [True, True, True]),
        ({"deterministic": True}, "cpu", [False, False, False]),
    ],
)
def test_and_steps_are_taken_so_where_it_is_asked_for(
    keys: dict[str, object], device: str, fixed: list[bool], tmp_path: Path
) -> None:
    run = Run(tiny_config(training=training() | keys), tmp_path)
    batch, seen = run.stream[0], []

    def noting(_: Batch, step: int) -> Loss:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return Loss(torch.tensor(1.0), {})

    run.trainer.batch_loss.backward = noting  # type: ignore[method-assign]
    run.trainer.device = torch.device(device)  # what was built stays on the CPU
    for run.trainer.progress.step in range(3):
        run.trainer.take_step(batch)
    assert seen == fixed
    run.trainer.gradient(batch)
    assert seen[-1] == fixed[-1], "also when a replay takes the step"
