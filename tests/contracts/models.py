"""A model of any objective on 24 px images, and a batch for it: one view with masks, or two views."""

from typing import get_args

import torch
from pydantic import TypeAdapter

from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.models import JEPA, EncoderConfig, Model, ModelConfig, TwoViews
from cjepa.models.predictor import PredictorConfig
from cjepa.objectives import AnyObjectiveConfig, ObjectiveConfig, TwoViewsConfig
from cjepa.types import Batch

VARIANTS: tuple[type[AnyObjectiveConfig], ...] = get_args(get_args(ObjectiveConfig)[0])
NAMES = [variant().name for variant in VARIANTS]
GRID = (6, 6)


def variant(name: str) -> AnyObjectiveConfig:
    """The objective's config with its defaults."""
    config: AnyObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_python({"name": name})
    return config


def model_for(config: AnyObjectiveConfig, width: int, depth: int) -> Model:
    """An initialised model of the kind that the objective needs."""
    encoder = EncoderConfig(width=width, depth=depth, heads=2, patch_size=4)
    parts = ModelConfig(encoder=encoder, predictor=PredictorConfig(width=16, depth=depth))
    model = TwoViews(parts) if isinstance(config, TwoViewsConfig) else JEPA(parts, GRID)
    model.initialise(0)
    return model


def batch_for(config: AnyObjectiveConfig, images: int, step: int = 0) -> Batch:
    """Noise, with a second view where the objective compares two."""
    generator = torch.Generator().manual_seed(step)
    first, second = torch.randint(0, 256, (2, images, 3, 24, 24), generator=generator, dtype=torch.uint8)
    masks = build_sampler(MultiblockConfig(), GRID, 0, images)(step, 0, images)
    views = second if isinstance(config, TwoViewsConfig) else None
    return Batch(first, masks, torch.arange(images), second=views)
