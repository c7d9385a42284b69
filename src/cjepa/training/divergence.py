"""Steps that cannot be taken: giving up with what is needed to repeat them, and going back behind them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cjepa.errors import DivergedError
from cjepa.ranks import from_first, gather
from cjepa.training.optimizer import OptimizerConfig
from cjepa.training.records import Records
from cjepa.training.state import Progressed, Taken
from cjepa.types import Batch, Precision

_log = logging.getLogger(__name__)


class RolledBack(Exception):  # noqa: N818  an instruction to the caller, not a fault
    """The newest checkpoint now says which steps are left out: restore it and train again."""


@dataclass(frozen=True)
class Trouble:
    """A step that changed nothing, with the samples of all ranks.

    Numbers are text: JSON has no words for those that are not finite.
    """

    step: int
    reason: str
    loss: str
    gradient_norm: str
    samples: list[int]

    @classmethod
    def of(cls, step: int, taken: Taken, batch: Batch) -> "Trouble":
        """What is known of a step that was taken and changed nothing."""
        loss, norm = repr(float(taken.loss.total.detach())), repr(taken.gradient_norm)
        return cls(step, str(taken.unchanged), loss, norm, gather(batch.samples).tolist())


def all_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether every number is finite; the first rank, which has the tensors, says so for all."""

    def ask() -> bool:
        flags = [tensor.isfinite().all().cpu() for entry in tensors.values() for tensor in entry.values()]
        return bool(torch.stack(flags).all())

    return from_first(ask)


def diverged(
    trouble: Sequence[Trouble],
    tensors: Mapping[str, Mapping[str, Tensor]],
    progress: Progressed,
    records: Records,
    advice: str,
) -> DivergedError:
    """The error to end the run with. The steps in trouble changed nothing, so the weights are those before them all.

    They are saved, with the steps and the images they held: `cjepa replay RUN` takes those steps again. advice: what to
    do in a new run.
    """
    first = trouble[0].step if trouble else progress.step
    state: dict[str, Any] = {
        "progress": progress.as_dict() | {"step": first, "skipped": progress.skipped - len(trouble)},
        "trouble": [asdict(each) for each in trouble],
        "losses": progress.recent.losses,
    }
    kept = records.dump(first, tensors, state)
    kinds = sorted({each.reason for each in trouble}) or ["not finite"]
    steps = f"in {len(trouble)} steps in a row, up to step {progress.step}" if trouble else f"at step {first}"
    return DivergedError(
        f"loss, gradient or weights were {' or '.join(kinds)} {steps}; {kept} (cjepa replay shows it). The last "
        f"checkpoint is good: in a new run {advice}"
    )


def remedies(optimizer: OptimizerConfig, precision: Literal["auto"] | Precision) -> str:
    """What may keep a run like this one from diverging, but for what it had."""
    found = ["lower training.optimizer.learning_rate.peak"]
    if optimizer.clip_gradient is None or optimizer.clip_gradient > 1:
        found.append("set training.optimizer.clip_gradient=1")
    if precision != "float32":
        found.append("use training.precision=float32")
    return ", or ".join(found)


def go_back(step: int, left_out: int, most: int, records: Records) -> None:
    """Let the newest checkpoint leave out the last steps up to this one, and raise RolledBack.

    The list is in the checkpoint, so that a run which is stopped meanwhile continues with it. After `most` times in
    a row to the same checkpoint there is nothing left to go back to: it returns, and the step counts as skipped.
    """
    if from_first(lambda: _leave_out(step, left_out, most, records)):
        raise RolledBack


def _leave_out(step: int, left_out: int, most: int, records: Records) -> bool:
    newest = records.checkpoints.newest()
    if newest is None:
        return False
    progress = Progressed.of(newest)
    if progress.rollbacks >= most:
        _log.warning("step %d: a spike, but the run went back %d times to step %d", step, most, newest.step)
        return False
    first = max(newest.step, step - left_out + 1)
    progress.left_out = sorted({*progress.left_out, *range(first, step + 1)})
    progress.rollbacks += 1
    progress.spikes += 1
    records.checkpoints.amend(newest, {**newest.state, "progress": progress.as_dict()}, {progress.best_step})
    _log.warning("step %d: a spike; back to step %d, leaving out steps %d to %d", step, newest.step, first, step)
    return True
