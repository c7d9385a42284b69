"""The predictor: rows of images and blocks are never mixed, and no block has an influence on another."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.models.predictor import Predictor, PredictorConfig
from cjepa.models.vit import SIZES
from cjepa.types import Masks

BATCH, BLOCKS, GRID, WIDTH = 3, 4, (6, 7), 24
ATTENTION = ("full", "one_way")
Predict = Callable[[Tensor, Masks], Tensor]


def predictor(**keys: object) -> Predictor:
    """Weights far from the small ones of the start, so that every input shows in every output."""
    config = PredictorConfig.model_validate({"width": 16, "depth": 2} | keys)
    built = Predictor(config, encoder_width=WIDTH, encoder_heads=4, grid=GRID)
    built.initialise(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for parameter in built.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return built


def masks(step: int = 0) -> Masks:
    return build_sampler(MultiblockConfig(), GRID, 0, BATCH)(step, 0, BATCH)


def contexts(count: int, seed: int = 0) -> Tensor:
    return torch.randn(BATCH, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def block_major(built: Predictor) -> Predict:
    """The mistake of a public re-implementation: predictions stacked block by block, then viewed as [batch, M]."""

    def predict(context: Tensor, given: Masks) -> Tensor:
        stacked = torch.cat([built(context, Masks(given.context, given.targets[:, [m]])) for m in range(BLOCKS)])
        return stacked.view(BATCH, BLOCKS, *stacked.shape[2:])

    return predict


def changed(predict: Predict, before: tuple[Tensor, Masks], after: tuple[Tensor, Masks]) -> list[tuple[int, int]]:
    """The (image, block) whose prediction differs between two inputs."""
    difference = (predict(*after) - predict(*before)).abs().amax(dim=(2, 3))
    return [(image, block) for image in range(BATCH) for block in range(BLOCKS) if difference[image, block] > 1e-3]


def rows_follow_their_images(predict: Predict) -> bool:
    """Whether another context of one image changes the predictions of that image and of no other."""
    given = masks()
    context = contexts(given.context.shape[1])
    for image in range(BATCH):
        other = context.clone()
        other[image] = -other[image]
        if changed(predict, (context, given), (other, given)) != [(image, block) for block in range(BLOCKS)]:
            return False
    return True


def columns_follow_their_blocks(predict: Predict) -> bool:
    """Whether another place of one target block of one image changes the prediction of that block alone."""
    given = masks()
    context = contexts(given.context.shape[1])
    for image in range(BATCH):
        for block in range(BLOCKS):
            targets = given.targets.clone()
            targets[image, block] = (targets[image, block] + 3) % (GRID[0] * GRID[1])
            if changed(predict, (context, given), (context, Masks(given.context, targets))) != [(image, block)]:
                return False
    return True


@pytest.mark.parametrize("size", SIZES)
def test_the_depth_follows_the_encoder_unless_it_is_given(size: str) -> None:
    """The paper's: 6 up to ViT-B and 12 from ViT-L on."""
    width, _, heads = SIZES[size]
    with torch.device("meta"):
        built = Predictor(PredictorConfig(), width, heads, (14, 14))
        given = Predictor(PredictorConfig(depth=2), width, heads, (14, 14))
    assert len(built.blocks) == (12 if size in ("large", "huge", "giant") else 6)
    assert len(given.blocks) == 2


@pytest.mark.parametrize("attention", ATTENTION)
def test_predictions_are_indexed_by_image_then_block(attention: str) -> None:
    built = predictor(attention=attention)
    assert rows_follow_their_images(built)
    assert columns_follow_their_blocks(built)


def test_a_block_major_view_would_be_seen() -> None:
    """The same numbers in the wrong order fail the two checks above, although the shape is right."""
    wrong = block_major(predictor())
    given = masks()
    context = contexts(given.context.shape[1])
    right = predictor()(context, given)
    assert wrong(context, given).shape == right.shape
    torch.testing.assert_close(wrong(context, given).flatten().sort().values, right.flatten().sort().values)
    assert not rows_follow_their_images(wrong)
    assert not columns_follow_their_blocks(wrong)


@pytest.mark.parametrize("attention", ATTENTION)
def test_each_block_of_each_image_equals_its_prediction_alone(attention: str) -> None:
    """No image and no other block has any influence."""
    built, given = predictor(attention=attention), masks()
    context = contexts(given.context.shape[1])
    together = built(context, given)
    for image in range(BATCH):
        for block in range(BLOCKS):
            alone = Masks(given.context[[image]], given.targets[[image], block : block + 1])
            torch.testing.assert_close(built(context[[image]], alone)[0, 0], together[image, block])


def test_the_prediction_equals_the_full_computation() -> None:
    """All rows through all blocks, the target rows taken at the end: what the shortcut of the last block must equal."""
    built, given = predictor(depth=3), masks()
    context = contexts(given.context.shape[1])
    asked = given.targets.shape[2]
    for block in range(BLOCKS):
        known = built.project_in(context) + built.positions[given.context]
        tokens = torch.cat([known, built.mask_token + built.positions[given.targets[:, block]]], dim=1)
        for layer in built.blocks:
            tokens = layer(tokens)
        expected = built.project_out(built.norm(tokens))[:, -asked:]
        torch.testing.assert_close(built(context, given)[:, block], expected)


def under_a_mask(built: Predictor, context: Tensor, given: Masks) -> Tensor:
    """All rows of [context, target 1, ..., target M] through all blocks, where a mask says who attends to whom."""
    length, heads = given.targets.shape[2], built.blocks[0].attn.heads
    known = built.project_in(context) + built.positions[given.context]
    tokens = torch.cat([known, (built.mask_token + built.positions[given.targets]).flatten(1, 2)], dim=1)
    owner = torch.tensor([-1] * context.shape[1] + [m for m in range(BLOCKS) for _ in range(length)])
    allowed = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    for layer in built.blocks:
        query, key, value = layer.attn.qkv(layer.norm1(tokens)).chunk(3, dim=-1)
        query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
        scores = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
        tokens = tokens + layer.attn.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
        tokens = tokens + layer.mlp(layer.norm2(tokens))
    predicted: Tensor = built.project_out(built.norm(tokens))[:, context.shape[1] :]
    return predicted.unflatten(1, (BLOCKS, length))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_one_way_attention_equals_one_sequence_under_a_mask(depth: int, recompute: bool) -> None:
    """Values and gradients."""
    built, given = predictor(attention="one_way", depth=depth).double(), masks()
    for block in built.blocks:
        block.recompute = recompute
    context = contexts(given.context.shape[1]).double().requires_grad_()
    found, expected = built(context, given), under_a_mask(built, context, given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [context, *built.parameters()]
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradients = [torch.autograd.grad((weights * output).sum(), inputs) for output in (found, expected)]
    for mine, other in zip(*gradients, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_one_way_attention_in_half_precision_is_near_to_full_precision() -> None:
    """By plain products on a CPU, as everywhere."""
    built, given = predictor(attention="one_way", depth=3), masks()
    context = contexts(given.context.shape[1])
    with torch.autocast("cpu", torch.bfloat16):
        found = built(context, given)
    torch.testing.assert_close(found.float(), built(context, given), rtol=0.05, atol=0.05)


def test_the_two_ways_of_attention_share_weights_and_differ_from_the_second_block_on() -> None:
    """What the context makes of the mask tokens is seen by the blocks after the first."""
    given = masks()
    context = contexts(given.context.shape[1])
    for depth in (1, 2):
        full, one_way = predictor(depth=depth), predictor(depth=depth, attention="one_way")
        one_way.load_state_dict(full.state_dict())
        difference = (full(context, given) - one_way(context, given)).abs().max()
        assert difference < 1e-5 if depth == 1 else difference > 1e-3


def test_predictions_depend_on_where_the_context_was() -> None:
    built, given = predictor(), masks()
    context = contexts(given.context.shape[1])
    shifted = Masks((given.context + 1) % (GRID[0] * GRID[1]), given.targets)
    assert len(changed(built, (context, given), (context, shifted))) == BATCH * BLOCKS


def test_patches_of_a_block_get_predictions_of_their_own() -> None:
    given = masks()
    predicted = predictor()(contexts(given.context.shape[1]), given)
    assert torch.pdist(predicted[0, 0]).min() > 1e-3


@pytest.mark.parametrize("attention", ATTENTION)
def test_context_in_any_order_predicts_the_same(attention: str) -> None:
    built, given = predictor(attention=attention), masks()
    context = contexts(given.context.shape[1])
    order = torch.randperm(context.shape[1], generator=torch.Generator().manual_seed(4))
    shuffled = Masks(given.context[:, order], given.targets)
    torch.testing.assert_close(built(context[:, order], shuffled), built(context, given))


@pytest.mark.parametrize("rescale_depth", [False, True])
def test_initialise_forgets_no_parameter(rescale_depth: bool) -> None:
    built = Predictor(PredictorConfig(width=16, depth=2, rescale_depth=rescale_depth), WIDTH, 4, GRID)
    for parameter in built.parameters():
        parameter.data.fill_(torch.nan)
    built.initialise(torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in built.parameters())
    assert 0 < built.mask_token.abs().max() <= 0.06
    last = built.blocks[1].mlp.fc2.weight.std().item()
    assert last == pytest.approx(0.02 / (2.0 if rescale_depth else 1.0), rel=0.1)


@pytest.mark.parametrize(
    ("encoder_heads", "width", "heads", "expected"),
    [(3, 384, None, 3), (16, 384, None, 16), (3, 64, None, 2), (3, 64, 8, 8)],
)
def test_heads_are_those_of_the_encoder_unless_the_width_does_not_divide(
    encoder_heads: int, width: int, heads: int | None, expected: int
) -> None:
    built = Predictor(PredictorConfig(width=width, depth=1, heads=heads), 48, encoder_heads, GRID)
    assert built.blocks[0].attn.heads == expected


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width \(16\) must be divisible by heads \(3\)"):
        predictor(heads=3)
