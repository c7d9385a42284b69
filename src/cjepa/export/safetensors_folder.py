"""Our own folder: what `cjepa.load_encoder` and huggingface_hub's mixin open."""

from pathlib import Path
from typing import Literal

from cjepa.export.parity import Difference, compare, probe
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.weights import open_weights
from cjepa.models.weights.folder import write_folder
from cjepa.types import Part


class SafetensorsConfig(Part):
    """config.json and model.safetensors, for cjepa.load_encoder and cjepa.HubEncoder.from_pretrained."""

    name: Literal["safetensors"] = "safetensors"


def write_safetensors(encoder: PretrainedEncoder, folder: Path) -> None:
    """Write the encoder into an existing folder."""
    write_folder(folder, encoder.encoder.config, encoder.preparation, encoder.encoder.state_dict())


def check_safetensors(encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    """The encoder against the one that the folder gives back."""
    opened = PretrainedEncoder.of(open_weights(folder))
    assert opened.preparation == encoder.preparation
    images = probe(encoder, encoder.image_size)
    return [compare("patch embeddings", encoder(images), opened(images))]


def load_safetensors(folder: Path) -> str:
    """Python that opens it."""
    return (
        "import cjepa\n\n"
        f'encoder = cjepa.load_encoder("{folder}")\n'
        "embeddings = encoder.embed(images)  # uint8 [B, 3, H, W] -> [B, D]"
    )
