"""The loop in which heads, and encoders with them, are fitted: every evaluation that trains takes its steps here."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cjepa.data.loader import Noted, Notes, load
from cjepa.errors import DivergedError, StoppedEarly
from cjepa.evaluation.work import Kept, Work

SAVE_SECONDS = 300.0
"""An evaluation that is killed loses at most so many seconds and the step it was in."""
SCALE = "lr_scale"
"""Key of an optimizer's group: the factor on the learning rate of the step."""

B = TypeVar("B")


@dataclass(frozen=True)
class Plan(Generic[B]):
    """What is fitted, and how.

    modules: what is saved, by name; in training mode where the caller put them. batches: item `step` is the batch of
    that step, a function of it alone. rate: the learning rate of a step, to be multiplied by each group's SCALE.
    after: called when a step was taken. prepare: called before the first step, but not where an interrupted fit goes
    on, with the batches of the first `prepared` steps.
    """

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    batches: Dataset[B]
    loss: Callable[[B], Tensor]
    rate: Callable[[int], float]
    steps: int
    images: int
    clip: float | None = None
    after: Callable[[int], None] = lambda _: None
    prepare: Callable[[Iterable[B]], None] | None = None
    prepared: int = 0


def fit(plan: Plan[B], work: Work) -> None:
    """Take the steps that are left: all of them, or those after the last save of the same evaluation.

    Step by step the same numbers, interrupted or not: batches are functions of the step, and so are torch's random
    numbers within it. Raises StoppedEarly at a signal, after saving, DivergedError if the loss is not finite, and
    WorkerError if a worker dies or hangs.
    """
    start = _restore(plan, work)
    if start == 0 and plan.prepare is not None:
        with closing(_batches(plan, range(plan.prepared), work)) as batches:
            plan.prepare(batches)
    saved = monotonic()
    with (
        work.unbroken(),
        _own_generators(work.device),
        work.progress("step", plan.steps) as line,
        closing(_batches(plan, range(start, plan.steps), work)) as batches,
    ):
        line.update(start, {})
        for step, batch in enumerate(batches, start):
            torch.manual_seed((work.seed * 1_000_003 + step) % 2**64)  # the most that torch takes
            loss = _take_step(plan, batch, step)
            line.update(step + 1, {"loss": loss}, plan.images)
            asked = work.stop()
            if asked or monotonic() - saved > SAVE_SECONDS:
                _save(plan, work, step + 1)
                saved = monotonic()
            if asked:
                raise StoppedEarly(
                    f"stopped by {asked} after step {step + 1} of {plan.steps}; the same command continues"
                )


def _batches(plan: Plan[B], steps: range, work: Work) -> Generator[B, None, None]:
    notes = Notes(work.workers)
    name = "the images of step {}".format
    return load(Noted(plan.batches, notes), steps, notes, name, workers=work.workers, patience=work.patience)


def _take_step(plan: Plan[B], batch: B, step: int) -> float:
    for group in plan.optimizer.param_groups:
        group["lr"] = plan.rate(step) * group.get(SCALE, 1.0)
    loss = plan.loss(batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(f"the loss of step {step + 1} is not finite; use a lower learning rate")
    plan.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if plan.clip is not None:
        nn.utils.clip_grad_norm_([each for group in plan.optimizer.param_groups for each in group["params"]], plan.clip)
    plan.optimizer.step()
    plan.after(step)
    return value


def warmup_cosine(step: int, warmup: int, total: int, final: float = 0.0) -> float:
    """A factor that rises linearly to 1 over the warm-up, then falls by half a cosine to `final`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total - 1 - warmup, 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _own_generators(device: torch.device) -> AbstractContextManager[Any]:
    """Within, torch's generators may be seeded; afterwards they are as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _save(plan: Plan[B], work: Work, step: int) -> None:
    state = plan.optimizer.state_dict()["state"]
    moments = {f"{key}|{name}": value for key, values in state.items() for name, value in values.items()}
    tensors = {name: _on_cpu(module.state_dict()) for name, module in plan.modules.items()}
    tensors["optimizer"] = _on_cpu({name: value for name, value in moments.items() if isinstance(value, Tensor)})
    numbers = {name: value for name, value in moments.items() if not isinstance(value, Tensor)}
    work.keeper.save(Kept(step, tensors, {"numbers": numbers}))


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _restore(plan: Plan[B], work: Work) -> int:
    kept = work.keeper.newest((*plan.modules, "optimizer"))
    if kept is None:
        return 0
    for name, module in plan.modules.items():
        module.load_state_dict(kept.tensors[name])
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*kept.tensors["optimizer"].items(), *kept.state["numbers"].items()]:
        key, _, entry = name.partition("|")
        state.setdefault(int(key), {})[entry] = value
    groups = plan.optimizer.state_dict()["param_groups"]
    plan.optimizer.load_state_dict({"state": state, "param_groups": groups})
    return kept.step
