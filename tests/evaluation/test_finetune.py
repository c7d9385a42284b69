"""Fine-tuning: MAE's parameter groups, the classifier against the encoder, resuming, and what is refused."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import layer_norm

from cjepa.errors import InputError, StoppedEarly
from cjepa.evaluation.finetune import (
    REFERENCE_BATCH,
    Classifier,
    FinetuneConfig,
    _augmentation,
    _average,
    _erased,
    _mixing,
    open_finetune,
    parameter_groups,
)
from cjepa.evaluation.fitting import SCALE
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.work import Work
from cjepa.runs.keeping import RunKeeper
from tests.evaluation.labelled_colours import labelled_colours, small_encoder

SHORT = FinetuneConfig(epochs=10, warmup_epochs=1, batch_size=20, base_rate=0.02, drop_path=0.2)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return labelled_colours(tmp_path_factory.mktemp("images"))


def test_it_learns_and_leaves_the_encoder_alone(images: LabelledImages) -> None:
    encoder = small_encoder()
    before = copy.deepcopy(encoder.state_dict())
    values = open_finetune(SHORT, images).measure(encoder, Work())
    assert values["finetune"] > 80  # chance is 33
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_interrupted_it_ends_with_the_same_weights(images: LabelledImages, tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"epochs": 2.0, "average": 0.9})
    task = open_finetune(config, images)
    last: dict[str, torch.Tensor] = {}

    class Last:
        def newest(self, groups: tuple[str, ...]) -> None:
            return None

        def save(self, kept: object) -> None:
            last.update(kept.tensors["model"])  # type: ignore[attr-defined]

    def stop_at(step: int) -> object:
        asked = iter([None] * (step - 1) + ["SIGTERM"])
        return lambda: next(asked)

    with pytest.raises(StoppedEarly):  # at the last step, only to see its weights
        task.measure(small_encoder(), Work(keeper=Last(), stop=stop_at(6)))  # type: ignore[arg-type]
    expected = dict(last)
    keeper = RunKeeper(tmp_path, {})
    with pytest.raises(StoppedEarly):
        task.measure(small_encoder(), Work(keeper=keeper, stop=stop_at(3)))  # type: ignore[arg-type]
    with pytest.raises(StoppedEarly):
        task.measure(small_encoder(), Work(keeper=keeper, stop=stop_at(3)))  # type: ignore[arg-type]
    kept = keeper.newest(("model", "averaged", "optimizer"))
    assert kept is not None
    assert kept.step == 6
    assert all(torch.equal(kept.tensors["model"][name], value) for name, value in expected.items())


def test_the_classifier_is_the_encoder_with_its_norm_after_the_mean() -> None:
    encoder = small_encoder()
    model = Classifier(copy.deepcopy(encoder.encoder), 3, 0.5).eval()
    images = torch.randn(2, 3, 16, 16)
    (tokens,) = encoder.encoder.last_layers(images, 1, norm=False)
    expected = model.head(layer_norm(tokens.mean(1), (32,), eps=1e-6))
    torch.testing.assert_close(model(images), expected)


def test_drop_path_grows_with_depth_and_leaves_out_whole_branches() -> None:
    model = Classifier(small_encoder().encoder, 3, 0.5)
    assert [block.drop.p for block in model.blocks] == [0.0, 0.5]
    torch.manual_seed(0)
    tokens = torch.randn(400, 4, 32)
    changed = (model.blocks[1].train()(tokens) != tokens).flatten(1).any(1)
    assert 0.68 < float(changed.float().mean()) < 0.82  # 1 - 0.5^2: two branches
    assert (model.blocks[0].train()(tokens) != tokens).flatten(1).any(1).all()


def test_layer_wise_rates() -> None:
    model = Classifier(small_encoder().encoder, 3, 0.1)
    model.transformer.norm.requires_grad_(False)
    groups = parameter_groups(model, FinetuneConfig(layer_decay=0.5, base_rate=1e-3), 512)
    rates = {id(each): group[SCALE] for group in groups for each in group["params"]}
    decays = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
    assert rates[id(model.head.weight)] == pytest.approx(2e-3)
    assert rates[id(model.norm.bias)] == pytest.approx(2e-3)
    assert rates[id(model.blocks[1].block.mlp.fc1.weight)] == pytest.approx(1e-3)
    assert rates[id(model.blocks[0].block.norm1.weight)] == pytest.approx(0.5e-3)
    assert rates[id(model.transformer.patch_projection.weight)] == pytest.approx(0.25e-3)
    trained = {id(each) for each in model.parameters() if each.requires_grad}
    assert rates.keys() == trained
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert decays[id(parameter)] == (0.05 if parameter.ndim == 2 else 0.0)


def test_mixing_keeps_targets_a_distribution() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 3
    mixed, targets = _mixing(FinetuneConfig(), 3)(images, labels)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert ((targets > 0).sum(1) > 1).any()
    same, hard = _mixing(FinetuneConfig(mixup=0, cutmix=0), 3)(images, labels)
    assert torch.equal(same, images)
    assert torch.equal(hard.argmax(1), labels)


def test_randaugment_is_as_strong_as_mae_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """rand-m9: what timm makes of magnitude 9, for half of the images each time."""
    from timm.data.auto_augment import LEVEL_TO_ARG
    from torchvision.transforms.v2 import RandAugment

    applied: dict[str, float] = {}
    count = 0

    def record(_: RandAugment, image: torch.Tensor, name: str, magnitude: float, **__: object) -> torch.Tensor:
        nonlocal count
        count += 1
        applied[name] = abs(magnitude)
        return image

    monkeypatch.setattr(RandAugment, "_apply_image_or_video_transform", record)
    torch.manual_seed(0)
    images = torch.zeros(400, 3, 100, 100, dtype=torch.uint8)
    assert torch.equal(_augmentation(FinetuneConfig(), (0.5, 0.5, 0.5))(images), images)
    assert 340 < count < 460
    levels = {name: LEVEL_TO_ARG[name](9, {})[0] for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel")}
    assert applied["Rotate"] == pytest.approx(abs(levels["Rotate"]))  # 27 degrees
    assert applied["ShearX"] == applied["ShearY"] == pytest.approx(abs(levels["ShearX"]))
    assert applied["TranslateX"] == pytest.approx(100 * abs(levels["TranslateXRel"]), rel=0.01)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        factor = LEVEL_TO_ARG[f"{name}Increasing"](9, {})[0]
        assert applied[name] == pytest.approx(abs(factor - 1))
    assert 255 * applied["Solarize"] == pytest.approx(LEVEL_TO_ARG["SolarizeIncreasing"](9, {})[0], abs=1)


def test_randaugment_fills_with_the_mean_and_changes_nothing_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms.v2 import RandAugment

    images = torch.full((40, 3, 16, 16), 200, dtype=torch.uint8)
    assert torch.equal(_augmentation(FinetuneConfig(randaugment=0), (0.5, 0.5, 0.5))(images), images)
    rotate = {"Rotate": RandAugment._AUGMENTATION_SPACE["Rotate"]}
    monkeypatch.setattr(RandAugment, "_AUGMENTATION_SPACE", rotate)
    torch.manual_seed(0)
    turned = _augmentation(FinetuneConfig(), (0.2, 0.4, 0.6))(images)
    assert turned[:, :, 0, 0].amin(0).tolist() == [51, 102, 153]


def test_it_ends_at_mae_s_rate() -> None:
    config = FinetuneConfig()
    peak = config.base_rate * config.batch_size / REFERENCE_BATCH
    assert config.final_share * peak == pytest.approx(1e-6)


def test_random_erasing_takes_its_share() -> None:
    torch.manual_seed(0)
    images = torch.zeros(200, 3, 16, 16)
    erased = (_erased(images, 0.25) != 0).flatten(1)
    assert 0.17 < float(erased.any(1).float().mean()) < 0.33
    assert torch.equal(_erased(images, 0.0), images)


def test_the_average_follows_the_weights() -> None:
    model = Classifier(small_encoder().encoder, 3, 0.0)
    averaged = copy.deepcopy(model).requires_grad_(False)
    start = averaged.head.weight.clone()
    torch.nn.init.ones_(model.head.weight)
    _average(FinetuneConfig(average=0.99), model, averaged, step=10**6)
    torch.testing.assert_close(averaged.head.weight, 0.99 * start + 0.01)
    _average(FinetuneConfig(), model, averaged, step=10**6)
    torch.testing.assert_close(averaged.head.weight, 0.99 * start + 0.01)


def test_without_torchvision_it_is_refused(images: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match="needs torchvision: pip install"):
        open_finetune(SHORT, images)
