"""The gradient of a batch that does not fit: exact for any objective, though its statistics cover the whole batch.

VICReg of micro-batches is not VICReg of the batch, so gradients of parts must not simply be added. Instead the
embeddings of all parts are computed first, without gradient; the objective sees them as one batch and says what it asks
of each embedding; then every part is computed again, with gradient, and handed its share (the idea of Gao et al.,
*Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup*, 2021).

Memory for a rank's b images of D features, C context and M blocks of T target patches, N patches in all, in float32:
the embeddings and what the objective asks of them, 4 b D (2 C + 3 M T) bytes beside the objective's own work, and
4 b D N while targets are normalised; plus the activations of one micro-batch. Work: one more forward pass.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from cjepa.types import Batch, Embeddings, Loss, Masks


def divide(batch: Batch, most: int) -> list[Batch]:
    """The batch in parts of at most this many images, as even as possible, in order."""
    count = -(-len(batch.images) // most)
    parts = (torch.tensor_split(each, count) for each in (batch.images, batch.masks.context, batch.masks.targets))
    samples = torch.tensor_split(batch.samples, count)
    seconds = [None] * count if batch.second is None else torch.tensor_split(batch.second, count)
    return [
        Batch(images, Masks(context, targets), own, second=second)
        for images, context, targets, own, second in zip(*parts, samples, seconds, strict=True)
    ]


def backward_in_parts(
    parts: Sequence[Batch],
    targets: Callable[[Iterable[Batch]], Float[Tensor, "B M T D"]],
    embed: Callable[[Batch, Tensor], Embeddings],
    objective: Callable[[Embeddings], Loss],
    unsynchronised: Callable[[], AbstractContextManager[None]],
) -> Loss:
    """The loss of the whole batch, whose gradient is added to the parameters'.

    targets, embed: the target blocks of all parts, and the embeddings of a part whose target blocks are known.
    unsynchronised: a context in which ranks do not exchange gradients; all parts but the last are in it.
    """
    with torch.no_grad():
        target = targets(parts)
        own = target.split([len(part.images) for part in parts])
        found = [embed(part, known) for part, known in zip(parts, own, strict=True)]
    context = torch.cat([each.context for each in found]).requires_grad_()
    predicted = torch.cat([each.predicted for each in found]).requires_grad_()
    del found
    loss = objective(Embeddings(context, predicted, target))
    loss.total.backward()
    first = 0
    for part, known in zip(parts, own, strict=True):
        rows = slice(first, first := first + len(part.images))
        with nullcontext() if part is parts[-1] else unsynchronised():
            again = embed(part, known)
            pairs = ((again.context, context.grad), (again.predicted, predicted.grad))
            asked = [(output, gradient[rows]) for output, gradient in pairs if gradient is not None]
            torch.autograd.backward([output for output, _ in asked], [gradient for _, gradient in asked])
    return loss
