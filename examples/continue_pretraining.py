"""Adapt an encoder to your own images: python examples/continue_pretraining.py WEIGHTS IMAGES RUN [KEY=VALUE ...]

WEIGHTS: a run, an export, an I-JEPA checkpoint, or weights of transformers or timm. The same in the shell:
cjepa pretrain small-96 data=IMAGES model.start=WEIGHTS ... --out RUN
"""

import sys
from pathlib import Path

from cjepa.build import read_weights
from cjepa.config.presets import resolve
from cjepa.runs import Outcome, pretrain


def main(weights_path: Path, images: Path, run: Path, changes: list[str]) -> Outcome:
    weights = read_weights(weights_path)
    encoder, prepared = weights.config, weights.preparation
    same_encoder = [
        f"model.encoder.{key}={getattr(encoder, key)}"
        for key in ("width", "depth", "heads", "patch_size", "mlp_ratio", "position_scale")
    ]
    config = resolve(
        "small-96",
        [
            f"data={images}",
            f"data.image_size={list(prepared.image_size)}",
            f"data.mean={list(prepared.mean)}",
            f"data.std={list(prepared.std)}",
            f"data.evaluation_crop={prepared.evaluation_crop}",
            *same_encoder,
            f"model.start={weights_path}",
            "training.optimizer.learning_rate.peak=2e-4",  # lower than from scratch: keep what is known
            *changes,
        ],
    )
    outcome = pretrain(config, run)
    print(f"{outcome.quality}: {outcome.untrained[outcome.quality]:.1f} -> {outcome.trained[outcome.quality]:.1f}")
    print(outcome.verdict)
    return outcome


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
