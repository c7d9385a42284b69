"""A folder that timm opens: model.safetensors with timm's names, and config.json as timm's Hub layout has it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from cjepa.export.parity import Difference, compare, probe
from cjepa.export.transformers_folder import grid
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.weights.contents import notes
from cjepa.models.weights.folder import CONFIG, TENSORS
from cjepa.models.weights.names import to_vit
from cjepa.models.weights.timm import HEADS
from cjepa.types import Part

STOCK: Mapping[str, Mapping[str, int | float]] = {
    "vit_base_patch16_gap_224": {"embed_dim": 768, "depth": 12, "num_heads": 16, "patch_size": 16, "img_size": 224},
    "vit_huge_patch14_gap_224": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14, "img_size": 224},
    "vit_huge_patch16_gap_448": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 16, "img_size": 448},
    "vit_giant_patch16_gap_224": {
        "embed_dim": 1408,
        "depth": 40,
        "num_heads": 16,
        "patch_size": 16,
        "img_size": 224,
        "mlp_ratio": 48 / 11,
    },
}
"""timm's models that are our encoder but for their sizes: no class token, mean over patches after the final norm."""


class TimmConfig(Part):
    """model.safetensors for timm.create_model(..., checkpoint_path=...), and config.json with its arguments."""

    name: Literal["timm"] = "timm"


def architecture(encoder: PretrainedEncoder) -> tuple[str, dict[str, Any]]:
    """The name of timm's model that is nearest, and the arguments in which this encoder differs from it."""
    config = encoder.encoder.config
    height, width = encoder.image_size
    wanted: dict[str, Any] = {
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "patch_size": config.patch_size,
        "img_size": height if height == width else [height, width],
        "mlp_ratio": config.mlp_ratio,
    }
    differing = {
        name: {key: value for key, value in wanted.items() if value != {"mlp_ratio": 4.0, **stock}[key]}
        for name, stock in STOCK.items()
    }
    name = min(differing, key=lambda each: len(differing[each]))
    return name, {"num_classes": 0, **differing[name]}


def write_timm(encoder: PretrainedEncoder, folder: Path) -> None:
    """Write the encoder into an existing folder."""
    config = encoder.encoder.config
    weights = to_vit(encoder.encoder.state_dict(), config, grid(encoder))
    noted = {HEADS: config.heads} | notes(config, encoder.preparation)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in noted.items()}
    save_file(weights, folder / TENSORS, metadata={"format": "pt", **texts})
    name, arguments = architecture(encoder)
    values = {
        "architecture": name,
        "num_classes": 0,
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, *encoder.image_size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": encoder.evaluation_crop,
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "first_conv": "patch_embed.proj",
        },
    }
    # num_heads is in model_args even where it is the stock's, for those who read the folder without timm.
    values["model_args"]["num_heads"] = config.heads  # type: ignore[index]
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def check_timm(encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    """Features of timm's model, opened as documented, before and after pooling."""
    import timm

    name, arguments = architecture(encoder)
    path = str(folder / TENSORS)
    model: Any = timm.create_model(name, pretrained=False, checkpoint_path=path, **arguments).eval()
    images = probe(encoder, encoder.image_size)
    expected = encoder(images)
    return [
        compare("patch embeddings", expected, model.forward_features(images)),
        compare("pooled embeddings", expected.mean(dim=1), model(images)),
    ]


def load_timm(encoder: PretrainedEncoder, folder: Path) -> str:
    """Python that opens it."""
    name, arguments = architecture(encoder)
    lines = [f'    "{name}",', "    pretrained=False,", f'    checkpoint_path="{folder / TENSORS}",']
    lines += [f"    {key}={tuple(value) if isinstance(value, list) else value!r}," for key, value in arguments.items()]
    return "\n".join(["import timm", "", "model = timm.create_model(", *lines, ")", "embeddings = model(images)"])
