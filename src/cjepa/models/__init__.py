"""What is learned: the encoder, its moving average and the predictor."""

from cjepa.models.jepa import JEPA, ModelConfig
from cjepa.models.vit import EncoderConfig, VisionTransformer

__all__ = ["JEPA", "EncoderConfig", "ModelConfig", "VisionTransformer"]
