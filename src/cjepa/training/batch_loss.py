"""The loss of a global batch and its gradient: the same whatever the batch is divided into."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from cjepa.errors import InputError
from cjepa.models import Model, TwoViews
from cjepa.models.jepa import gather_blocks
from cjepa.objectives import Objective
from cjepa.ranks import mean, world_size
from cjepa.training.accumulation import backward_in_parts, divide
from cjepa.training.parallel import Engine
from cjepa.types import Batch, Embeddings, Loss, to_device


@contextmanager
def whole_float32() -> Iterator[None]:
    """Within, no product in float32 is rounded to TF32, which an environment variable or torch's setting may allow.

    Its 10 bits would reach the statistics of the objectives, and their gradient.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class BatchLoss:
    """The loss of the global batch, taken from this rank's slots of it.

    prepare: uint8 images to what the model takes, on its device. micro_batch: most images in one forward pass; None for
    all of the rank's. Targets with gradient cannot be divided: InputError.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        prepare: Callable[[Tensor], Float[Tensor, "B 3 H W"]],
        engine: Engine,
        device: torch.device,
        bfloat16: bool,
        micro_batch: int | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.prepare = prepare
        self.engine = engine
        self.device = device
        self.bfloat16 = bfloat16
        self.micro_batch = micro_batch
        self._packed = False

    @whole_float32()
    def backward(self, batch: Batch, step: int) -> Loss:
        """The loss, without graph; its gradient is added to the parameters', of which it must be the first."""
        if self.engine.replicated and not self._packed:
            # DDP packs gradients anew after its first backward pass, and more than two ranks then add them up in
            # another order. So that a continued run has the bits of one that was never stopped, the first pass of a
            # process is taken twice.
            self._packed = True
            self._backward(batch, step)
            for parameter in (*self.model.parameters(), *self.objective.parameters()):
                parameter.grad = None
        return self._backward(batch, step)

    def _backward(self, batch: Batch, step: int) -> Loss:
        if self.micro_batch is None or self.micro_batch >= len(batch.images):
            loss: Loss = self.engine.objective(self._embed(batch), step)
            loss.total.backward()
        else:
            self._refuse_target_gradient()
            parts = divide(batch, self.micro_batch)

            def objective(whole: Embeddings) -> Loss:
                judged: Loss = self.engine.objective(whole, step)
                return judged

            loss = backward_in_parts(parts, self._targets, self._embed, objective, self.engine.unsynchronised)
        return _averaged(loss)

    def _embed(self, part: Batch, target: Float[Tensor, "B M T D"] | None = None) -> Embeddings:
        images = self.prepare(part.images)
        shown = part.masks.to(self.device) if part.second is None else self.prepare(part.second)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            embeddings: Embeddings = self.engine.model(images, shown, target)
        return embeddings

    def _targets(self, parts: Iterable[Batch]) -> Float[Tensor, "B M T D"]:
        parts = list(parts)
        if isinstance(self.model, TwoViews):
            return torch.cat([self._embed(part).target for part in parts])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            patches = self.model.targets(self.prepare(part.images) for part in parts)
        blocks = torch.cat([part.masks.targets for part in parts])
        return gather_blocks(patches, to_device(blocks, self.device))

    def _refuse_target_gradient(self) -> None:
        if self.model.config.target.gradient:
            raise InputError(
                f"model.target.gradient=true, which is for studying collapse, cannot be divided into micro-batches of "
                f"{self.micro_batch}; set training.micro_batch to the images of a rank, or lower training.batch_size"
            )


def on_host(loss: Loss) -> Loss:
    """The same numbers where reading one waits for nothing; brought there in one transfer."""
    total, *terms = torch.stack([loss.total.detach(), *loss.terms.values()]).cpu().unbind()
    return Loss(total, dict(zip(loss.terms, terms, strict=True)))


def _averaged(loss: Loss) -> Loss:
    """The mean over the ranks: their prediction losses differ, everything else is the global batch's already."""
    values = torch.stack([loss.total.detach(), *loss.terms.values()])
    if world_size() > 1:  # one rank asks for no float64, which not every device has
        values = mean(values.double()).to(values.dtype)
    total, *terms = values.unbind()
    return Loss(total, dict(zip(loss.terms, terms, strict=True)))
