"""What is learned: the encoder, its moving average and the predictor."""

from cjepa.models.jepa import JEPA, ModelConfig
from cjepa.models.two_views import TwoViews
from cjepa.models.vit import EncoderConfig, VisionTransformer

__all__ = ["JEPA", "EncoderConfig", "Model", "ModelConfig", "TwoViews", "VisionTransformer"]

Model = JEPA | TwoViews
"""An encoder with its moving average, and whatever it is trained with besides an objective."""
