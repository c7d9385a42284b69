"""The largest differences of every export format, for encoders of the named sizes.

    python -m benchmarks.parity

exports encoders of random weights (far from their start, so that no branch is small) in every format, and keeps what
the checks of the exports found. It writes benchmarks/results/parity.json; `--report` prints the table of docs/export.md
from that file.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cjepa.config import parts_of
from cjepa.export import ExportConfig, export_encoder
from cjepa.models import EncoderConfig, VisionTransformer
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "parity.json"
PACKAGES = ("torch", "transformers", "timm", "onnx", "onnxruntime", "onnxscript")
CASES = {"tiny-16-224": ("tiny", 16, 224), "small-16-224": ("small", 16, 224), "tiny-8-96": ("tiny", 8, 96)}
"""Size, patch size and image size."""


def encoder(size: str, patch_size: int, image_size: int) -> PretrainedEncoder:
    """A named size with weights three times as large as at the start."""
    transformer = VisionTransformer(EncoderConfig(**EncoderConfig.named(size), patch_size=patch_size))
    generator = torch.Generator().manual_seed(0)
    transformer.initialise(generator)
    for parameter in transformer.parameters():
        parameter.data += 0.04 * torch.randn(parameter.shape, generator=generator)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return PretrainedEncoder(transformer, (image_size, image_size), mean, std, 0.875).requires_grad_(False).eval()


def measure() -> list[dict[str, Any]]:
    """One row for each encoder, format and comparison."""
    rows = []
    for case, sizes in CASES.items():
        built = encoder(*sizes)
        for part in parts_of(ExportConfig):
            with tempfile.TemporaryDirectory() as temporary:
                config: Any = part()
                written = export_encoder(config, built, Path(temporary) / "out")
                rows += [{"encoder": case, "format": config.name, **vars(each)} for each in written.differences]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The largest difference of each format over all encoders, in markdown."""
    lines = ["| format | compared | largest difference | tolerated |", "|---|---|---|---|"]
    kinds = {(row["format"], row["unit"]): row["tolerance"] for row in rows}
    for (name, unit), tolerance in kinds.items():
        found = [row["largest"] for row in rows if (row["format"], row["unit"]) == (name, unit)]
        lines.append(f"| `{name}` | {len(found)} | {max(found):.1e} {unit} | {tolerance:.0e} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    if not parser.parse_args().report:
        packages = {name: version(name) for name in PACKAGES}
        content = {"environment": describe_environment(), "packages": packages, "rows": measure()}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    main()
