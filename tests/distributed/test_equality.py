"""Any number of ranks, DDP or FSDP2, divided or not: the loss and the gradient of a single process, in float64."""

from functools import cache
from itertools import chain

import pytest
import torch

from tests.distributed.cases import (
    BATCH,
    OBJECTIVES,
    Case,
    Found,
    gradient_of,
    gradients_of,
    refused_on_unequal_machines,
    with_mistake,
)
from tests.distributed.harness import on_ranks

TOLERANCE = 1e-10
HALF_LOSS, HALF_GRADIENT = 1e-3, 1e-2
"""Relative, with bfloat16 in the forward pass, which rounds to 2^-9: each rank rounds sums over its own images."""
CASES = [
    *(Case(objective) for objective in OBJECTIVES),
    *(Case(objective, norm="layer") for objective in ("cjepa", "cjepa-context")),
    Case("cjepa", targets="batch"),
    Case("cjepa", targets="none"),
    Case("cjepa", targets="batch", target_gradient=True),
    Case("cjepa", attention="one_way"),
]
"""Every objective, every normalisation of the projector and of the targets, both attentions of the predictor."""
FEW = [
    Case("cjepa", targets="batch"),
    Case("cjepa-context", attention="one_way"),
    Case("cjepa-sigreg", norm="layer"),
    Case("simsiam"),
]
MISTAKES = ("statistics_of_this_rank", "gathered_without_gradient", "raw_all_reduce")


def changed(case: Case, **changes: object) -> Case:
    return Case(**(vars(case) | changes))  # type: ignore[arg-type]


@cache
def alone(case: Case) -> Found:
    """The case in this process, undivided."""
    return gradient_of(changed(case, parallel="auto", micro_batch=None))


def loss_error(found: Found, right: Found) -> float:
    assert found.terms.keys() == right.terms.keys()
    pairs = [(found.loss, right.loss), *((found.terms[name], right.terms[name]) for name in right.terms)]
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)


def gradient_error(found: Found, right: Found) -> float:
    """Norm of the difference over the norm of the whole gradient."""
    assert found.gradients.keys() == right.gradients.keys()
    difference = sum((found.gradients[name] - right.gradients[name]).square().sum() for name in right.gradients)
    return float((difference / sum(each.square().sum() for each in right.gradients.values())).sqrt())


def assert_equal(found: Found, right: Found) -> None:
    assert loss_error(found, right) < TOLERANCE
    assert gradient_error(found, right) < TOLERANCE


@pytest.mark.parametrize(("ranks", "parallel"), [(2, "fsdp"), (4, "ddp")])
def test_a_few_objectives_on_ranks_and_in_parts(ranks: int, parallel: str) -> None:
    """The whole matrix is `make test-distributed`."""
    cases = [changed(case, parallel=parallel, micro_batch=size) for case in FEW for size in (None, 2)]
    for found in on_ranks(ranks, gradients_of, cases):
        for case, each in zip(cases, found, strict=True):
            assert_equal(each, alone(changed(case, parallel="auto", micro_batch=None)))


@pytest.mark.distributed
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_have_the_loss_and_gradient_of_one_process(ranks: int, parallel: str) -> None:
    cases = [changed(case, parallel=parallel) for case in CASES]
    everyone = on_ranks(ranks, gradients_of, cases)
    for number, case in enumerate(cases):
        for found in everyone:
            assert_equal(found[number], alone(changed(case, parallel="auto")))
        samples = [found[number].samples for found in everyone]
        assert list(chain(*samples)) == alone(changed(case, parallel="auto")).samples, "ranks hold consecutive slots"


@pytest.mark.distributed
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_have_the_gradient_of_the_undivided_batch(ranks: int, parallel: str, micro_batch: int) -> None:
    cases = [changed(case, parallel=parallel, micro_batch=micro_batch) for case in CASES if not case.target_gradient]
    for found in on_ranks(ranks, gradients_of, cases):
        for case, each in zip(cases, found, strict=True):
            assert_equal(each, alone(changed(case, parallel="auto", micro_batch=None)))


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.distributed)])
def test_bfloat16_on_two_ranks_is_that_of_one_process(parallel: str, micro_batch: int | None) -> None:
    """Weights, their gradients and the statistics stay float32; and the loss is not that of float32."""
    case = Case("cjepa", bfloat16=True)
    right, exact = alone(case), alone(Case("cjepa"))
    assert 1e-6 < loss_error(right, exact) < 0.1, "autocast does something"
    for found in on_ranks(2, gradient_of, changed(case, parallel=parallel, micro_batch=micro_batch)):
        assert loss_error(found, right) < HALF_LOSS
        assert gradient_error(found, right) < HALF_GRADIENT
        assert {gradient.dtype for gradient in found.gradients.values()} == {torch.float32}


@pytest.mark.distributed
def test_shards_within_machines_and_copies_between_them_too() -> None:
    cases = [Case("cjepa", "fsdp"), Case("cjepa-context", "fsdp", targets="batch", micro_batch=2)]
    for found in on_ranks(4, gradients_of, cases, local=2):
        for case, each in zip(cases, found, strict=True):
            assert_equal(each, alone(changed(case, parallel="auto", micro_batch=None)))


def test_machines_with_unequal_numbers_of_ranks_are_told_what_shards_need() -> None:
    said = (
        "FSDP (training.parallel) divides the weights within each machine, but some have 1 ranks and some 2; start as "
        "many processes on every machine, or set training.parallel=ddp"
    )
    assert on_ranks(3, refused_on_unequal_machines, local=2) == [said] * 3


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.distributed)])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_classic_mistakes_are_seen(ranks: int, mistake: str) -> None:
    """So that the equality above says something: each is far from the tolerance, those of gradient alone included."""
    case = Case("cjepa")
    for found in on_ranks(ranks, with_mistake, mistake, case):
        assert gradient_error(found, alone(case)) > 0.05
        right_loss = loss_error(found, alone(case)) < TOLERANCE
        assert right_loss == (mistake != "statistics_of_this_rank"), "the loss does not show what the gradient shows"


def test_adding_the_gradients_of_parts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """VICReg of micro-batches is not VICReg of the batch."""
    import cjepa.training.batch_loss as place

    def added(parts, targets, embed, objective, unsynchronised):  # type: ignore[no-untyped-def]
        losses = [objective(embed(part)) for part in parts]
        for loss in losses:
            (loss.total / len(parts)).backward()
        return losses[-1]

    monkeypatch.setattr(place, "backward_in_parts", added)
    divided = gradient_of(Case("cjepa", micro_batch=BATCH // 3))
    assert gradient_error(divided, alone(Case("cjepa"))) > 0.05
    plain = gradient_of(Case("ijepa", micro_batch=BATCH // 3))
    assert gradient_error(plain, alone(Case("ijepa"))) < TOLERANCE  # without statistics it is exact


@pytest.mark.parametrize("attention", ["full", "one_way"])
def test_recomputed_blocks_change_nothing(attention: str) -> None:
    """Activation checkpointing repeats the same arithmetic."""
    from cjepa.models.blocks import Block

    case = Case("cjepa", micro_batch=4, attention=attention)
    plain = gradient_of(case)
    Block.recompute = True
    try:
        recomputed = gradient_of(case)
    finally:
        Block.recompute = False
    assert recomputed.loss == plain.loss
    assert gradient_error(recomputed, plain) < TOLERANCE
