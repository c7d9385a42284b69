"""The configuration of a run: the composition of the parts' configs."""

from pydantic import Field, model_validator

from cjepa.data import DataConfig
from cjepa.evaluation.monitor import MonitorConfig
from cjepa.masking import MaskingConfig, MultiblockConfig, build_sampler
from cjepa.models import ModelConfig
from cjepa.objectives import CJepaConfig, ContextConfig, IJepaConfig, ObjectiveConfig, TwoViewsConfig
from cjepa.training.config import TrainingConfig
from cjepa.training.metrics import LoggingConfig
from cjepa.types import Part


class RunConfig(Part):
    """Everything that decides a run, but for the machine."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of images, crops and masks."""
    data: DataConfig
    """Images, their crops and how they are loaded."""
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    """Encoder, predictor and targets."""
    masking: MaskingConfig = Field(default_factory=lambda: MultiblockConfig())
    """Which patches are context and which are predicted."""
    objective: ObjectiveConfig = Field(default_factory=lambda: CJepaConfig())
    """What is minimised."""
    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig())
    """How long, how large and how fast."""
    monitor: MonitorConfig = Field(default_factory=lambda: MonitorConfig())
    """The cheap evaluation during training."""
    logging: LoggingConfig = Field(default_factory=lambda: LoggingConfig())
    """Where the metrics go besides metrics.jsonl."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a training image."""
        height, width = self.data.size
        return height // self.model.encoder.patch_size, width // self.model.encoder.patch_size

    @model_validator(mode="after")
    def _parts_fit(self) -> "RunConfig":
        self._patches_fit()
        self._blocks_can_be_compared()
        self._predictor_heads_divide()
        if not isinstance(self.objective, TwoViewsConfig):
            build_sampler(self.masking, self.grid, self.seed, self.training.batch_size)
        return self

    def _patches_fit(self) -> None:
        patch = self.model.encoder.patch_size
        for name, side in zip(("height", "width"), self.data.size, strict=True):
            if side < patch:
                raise ValueError(f"data.image_size: a {name} of {side} is smaller than a patch of {patch} pixels")
            if side % patch:
                raise ValueError(
                    f"data.image_size: a {name} of {side} is not divisible by model.encoder.patch_size={patch}; "
                    f"use {side - side % patch} or {side - side % patch + patch}"
                )

    def _blocks_can_be_compared(self) -> None:
        compares = not isinstance(self.objective, IJepaConfig | ContextConfig | TwoViewsConfig)
        if compares and self.masking.targets < 2:
            raise ValueError(
                f"masking.targets: objective={self.objective.name} compares the target blocks of an image, so there "
                "must be at least 2"
            )

    def _predictor_heads_divide(self) -> None:
        predictor = self.model.predictor
        if predictor.heads is not None and predictor.width % predictor.heads:
            raise ValueError(
                f"model.predictor.heads: {predictor.heads} heads do not divide the width of {predictor.width}; "
                "leave heads out, or choose a divisor"
            )
