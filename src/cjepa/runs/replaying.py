"""`cjepa replay`: take again the steps that ended a run, from the dump that it left."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cjepa.build import build_stream, build_trainer, choose_device, read_config
from cjepa.data import iterate, open_source
from cjepa.errors import InputError
from cjepa.runs.pretraining import DIVERGED
from cjepa.training.checkpoint import Checkpoint, CheckpointStore
from cjepa.training.divergence import Trouble


@dataclass(frozen=True)
class Replayed:
    """A step that changed nothing, as the run met it and as it is now.

    samples_agree: whether the step still holds the same images. broken: the parameters whose value or gradient is not
    finite, by name.
    """

    recorded: Trouble
    loss: str
    gradient_norm: str
    samples_agree: bool
    broken: tuple[str, ...]

    @property
    def reproduced(self) -> bool:
        """Whether the loss is the recorded one, digit by digit."""
        return self.samples_agree and self.loss == self.recorded.loss


def replay(run: Path, device: str = "auto") -> list[Replayed]:
    """Every step that the dump of a diverged run lists, taken again from its weights; nothing is written.

    Raises InputError where there is no dump, NoValidCheckpointError where it is damaged.
    """
    config = read_config(run)
    dump = CheckpointStore(run / DIVERGED).newest()
    if dump is None:
        raise InputError(f"{run} has no dump of a divergence ({DIVERGED}/): the run did not end with exit code 3")
    splits = open_source(config.data, config.seed)
    stream = build_stream(config, splits)
    trainer = build_trainer(config, len(splits.train), choose_device(device))
    trainer.restore(dump)
    replayed = []
    for trouble in _trouble(dump):
        trainer.progress.step = trouble.step
        [batch] = iterate(stream, trouble.step, trouble.step + 1, 0)
        loss, norm = trainer.gradient(batch)
        broken = tuple(
            name
            for name, parameter in trainer.parameters.items()
            if not (_finite(parameter.detach()) and (parameter.grad is None or _finite(parameter.grad)))
        )
        trainer.optimizer.zero_grad(set_to_none=True)
        agree = batch.samples.tolist() == trouble.samples
        replayed.append(Replayed(trouble, repr(float(loss.total.detach())), repr(norm), agree, broken))
    return replayed


def _trouble(dump: Checkpoint) -> list[Trouble]:
    try:
        return [Trouble(**each) for each in dump.state["trouble"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{dump.path / 'state.json'} does not say which steps diverged ({error})") from error


def _finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())
