"""Fine-tuning of the whole encoder with MAE's recipe."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cjepa.errors import InputError
from cjepa.evaluation.batches import LabelledBatches, steps_of
from cjepa.evaluation.fitting import SCALE, Plan, fit, warmup_cosine
from cjepa.evaluation.labelled import LabelledImages, accuracies
from cjepa.evaluation.task import EncoderTask, Values
from cjepa.evaluation.work import Work
from cjepa.models import VisionTransformer
from cjepa.models.blocks import NORM_EPSILON, Block
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.types import Part

REFERENCE_BATCH = 256
BETAS = (0.9, 0.999)
_BINS = 3
"""Of torchvision's magnitudes, 0 to 30, for each of MAE's, 0 to 10: both end at 30 degrees, a shear of 0.3, ..."""
Share = Annotated[float, Field(ge=0, le=1)]


class FinetuneConfig(Part):
    """The encoder and a linear head trained on the labels; the defaults are MAE's for ViT-B."""

    name: Literal["finetune"] = "finetune"
    """Fine-tuning of all weights."""
    epochs: float = Field(100.0, gt=0)
    """Passes over the training images."""
    warmup_epochs: float = Field(5.0, ge=0)
    """Linear warm-up, then half a cosine."""
    batch_size: int = Field(1024, ge=2)
    """Images per step, at most all."""
    base_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of the head for 256 images a step; it grows with the batch."""
    final_share: float = Field(5e-4, ge=0, le=1)
    """Learning rate at the end as a share of the peak: 1e-6 with the default batch, where MAE ends with any."""
    layer_decay: float = Field(0.65, gt=0, le=1)
    """Each block's learning rate is that of the block after it times this."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's decay of matrices."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Chance that a residual branch of the last block is left out for an image; it grows linearly with depth."""
    mixup: float = Field(0.8, ge=0)
    """Strength of mixup (alpha of its beta distribution), 0 for none."""
    cutmix: float = Field(1.0, ge=0)
    """Strength of CutMix, 0 for none; with mixup, each is drawn for half of the batches."""
    random_erasing: Share = 0.25
    """Chance that a rectangle of an image is replaced by noise."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target spread over all classes."""
    randaugment: int = Field(9, ge=0, le=10)
    """Magnitude of RandAugment as MAE counts it, from 0 to 10: two operations, each for half of the images; 0: none."""
    average: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is then what is evaluated; MAE uses none."""
    clip_gradient: float | None = Field(None, gt=0)
    """Largest norm of the gradient."""
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)
    """Area of a training crop as a share of the image; half of the crops are mirrored."""


class Classifier(nn.Module):
    """An encoder, the mean over its patches, a LayerNorm in place of the encoder's own, and a linear layer."""

    def __init__(self, transformer: VisionTransformer, classes: int, drop_path: float) -> None:
        super().__init__()
        self.transformer = transformer
        last = max(len(transformer.blocks) - 1, 1)
        self.blocks = nn.ModuleList(
            _Dropping(block, drop_path * number / last) for number, block in enumerate(transformer.blocks)
        )
        # As MAE with its mean pool: the norm comes after the mean, and starts anew.
        self.norm = nn.LayerNorm(transformer.width, eps=NORM_EPSILON)
        self.head = nn.Linear(transformer.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        """Logits of normalised images."""
        tokens = self.transformer.embed_patches(images)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens.mean(1)))
        return logits


class _Dropping(nn.Module):
    """A block whose residual branches are left out for some images while it is trained."""

    def __init__(self, block: nn.Module, chance: float) -> None:
        from torchvision.ops import StochasticDepth

        super().__init__()
        assert isinstance(block, Block)
        self.block = block
        self.drop = StochasticDepth(chance, "row")

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        block = self.block
        tokens = tokens + self.drop(block.attn(block.norm1(tokens)))
        output: Tensor = tokens + self.drop(block.mlp(block.norm2(tokens)))
        return output


@dataclass(frozen=True)
class FinetuneTask(EncoderTask):
    """Labelled images and the recipe."""

    config: FinetuneConfig
    images: LabelledImages

    def protocol(self) -> dict[str, Any]:
        """Images and their preparation."""
        return self.images.protocol()

    def measure(self, encoder: PretrainedEncoder, work: Work) -> Values:
        """Percent of the test images right after the last step."""
        classes = len(self.images.train.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)  # the same head for every encoder
            transformer = copy.deepcopy(encoder.encoder).requires_grad_(True)
            model = Classifier(transformer, classes, self.config.drop_path)
        model.transformer.norm.requires_grad_(False)  # replaced by the norm after the mean
        model = model.to(work.device)
        averaged = copy.deepcopy(model).requires_grad_(False) if self.config.average is not None else None
        fit(self._plan(model, averaged, classes, work), work)
        return {"finetune": self._accuracy(averaged or model, work)}

    def _plan(self, model: Classifier, averaged: Classifier | None, classes: int, work: Work) -> Plan[Any]:
        config, data = self.config, self.images.data
        size = min(config.batch_size, len(self.images.train))
        steps = steps_of(config.epochs, len(self.images.train), size)
        warmup = round(steps * min(config.warmup_epochs / config.epochs, 1))
        augment, mix = _augmentation(config, data.mean), _mixing(config, classes)

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            pixels, labels = batch
            images = normalise(augment(pixels).to(work.device), data.mean, data.std)
            images, targets = mix(_erased(images, config.random_erasing), labels.to(work.device))
            with work.autocast():
                logits = model(images)
            return cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)

        model.train()
        modules: dict[str, nn.Module] = {"model": model}
        if averaged is not None:
            modules["averaged"] = averaged
        return Plan(
            modules=modules,
            optimizer=torch.optim.AdamW(parameter_groups(model, config, size), betas=BETAS),
            batches=LabelledBatches(self.images.train, data.size, size, work.seed, config.crop_scale),
            loss=loss,
            rate=lambda step: warmup_cosine(step, warmup, steps, config.final_share),
            steps=steps,
            images=size,
            clip=config.clip_gradient,
            after=lambda step: _average(config, model, averaged, step),
        )

    def _accuracy(self, model: Classifier, work: Work) -> float:
        model.eval()

        def classify(images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
            with work.autocast():
                return [model(images)]

        [percent] = accuracies(classify, self.images.test, self.images.data, "test image", work)
        return percent


def open_finetune(config: FinetuneConfig, images: LabelledImages) -> FinetuneTask:
    """The recipe with its images; InputError without torchvision."""
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise InputError('fine-tuning needs torchvision: pip install "cjepa[evaluation]"') from error
    return FinetuneTask(config, images)


def parameter_groups(model: Classifier, config: FinetuneConfig, batch_size: int) -> list[dict[str, Any]]:
    """AdamW's groups: layer l of L + 1 learns at peak * layer_decay^(L + 1 - l); vectors do not decay.

    Layer 0 is the patch projection, layer l block l, layer L + 1 the norm and the head (BEiT, Bao et al., 2021).
    """
    depth = len(model.blocks)
    peak = config.base_rate * batch_size / REFERENCE_BATCH
    layers: list[tuple[int, nn.Module]] = [(0, model.transformer.patch_projection)]
    layers += [(number, block) for number, block in enumerate(model.blocks, start=1)]
    layers += [(depth + 1, model.norm), (depth + 1, model.head)]
    groups = []
    for layer, module in layers:
        scale = peak * config.layer_decay ** (depth + 1 - layer)
        for decays in (True, False):
            parameters = [each for each in module.parameters() if (each.ndim >= 2) == decays]
            if parameters:
                decay = config.weight_decay if decays else 0.0
                groups.append({"params": parameters, "weight_decay": decay, SCALE: scale, "lr": scale})
    return groups


def _average(config: FinetuneConfig, model: Classifier, averaged: Classifier | None, step: int) -> None:
    if averaged is not None and config.average is not None:
        # Few steps in, a long average would still be the start.
        decay = min(config.average, (1 + step) / (10 + step))
        update = get_ema_multi_avg_fn(decay)
        update(list(averaged.parameters()), [each.detach() for each in model.parameters()], 0)


def _augmentation(config: FinetuneConfig, mean: tuple[float, float, float]) -> Callable[[Tensor], Tensor]:
    if config.randaugment == 0:
        return lambda images: images
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import Compose, RandAugment, RandomApply

    fill = [round(255 * channel) for channel in mean]
    operation = RandAugment(1, _BINS * config.randaugment, interpolation=InterpolationMode.BILINEAR, fill=fill)
    augment = Compose([RandomApply([operation], p=0.5)] * 2)
    return lambda images: torch.stack([augment(image) for image in images])


def _erased(images: Float[Tensor, "B 3 H W"], chance: float) -> Float[Tensor, "B 3 H W"]:
    if chance == 0:
        return images
    from torchvision.transforms.v2 import RandomErasing

    erase = RandomErasing(p=chance, scale=(0.02, 1 / 3), value="random")
    return torch.stack([erase(image) for image in images])


def _mixing(
    config: FinetuneConfig, classes: int
) -> Callable[[Float[Tensor, "B 3 H W"], Int[Tensor, "B"]], tuple[Tensor, Tensor]]:
    from torchvision.transforms.v2 import CutMix, MixUp, RandomChoice

    mixers: list[nn.Module] = []
    if config.mixup > 0:
        mixers.append(MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix > 0:
        mixers.append(CutMix(alpha=config.cutmix, num_classes=classes))
    if not mixers:
        return lambda images, labels: (images, one_hot(labels, classes).float())
    mix: nn.Module = RandomChoice(mixers)
    return lambda images, labels: mix(images, labels)
