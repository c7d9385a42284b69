"""A torch.export program: the encoder as a graph that needs torch, but not this package."""

from pathlib import Path
from typing import Literal

import torch

from cjepa.export.parity import Difference, compare, probe, sizes
from cjepa.export.traceable import trace
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.types import Part

PROGRAM = "encoder.pt2"


class ProgramConfig(Part):
    """encoder.pt2 for torch.export.load: normalised images of any batch, height and width to (patches, pooled)."""

    name: Literal["torch-export"] = "torch-export"


def write_program(encoder: PretrainedEncoder, folder: Path) -> None:
    """Write the graph into an existing folder."""
    torch.export.save(trace(encoder), folder / PROGRAM)


def check_program(encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    """The program that the file gives back against the encoder, at three sizes."""
    module = torch.export.load(folder / PROGRAM).module()
    differences = []
    for count, size in enumerate(sizes(encoder), start=1):
        images = probe(encoder, size, count)
        expected = encoder(images)
        patches, pooled = module(images)
        what = f"{count} of {size[0]} x {size[1]}"
        differences += [
            compare(f"{what}: patches", expected, patches),
            compare(f"{what}: pooled", expected.mean(dim=1), pooled),
        ]
    return differences


def load_program(folder: Path) -> str:
    """Python that opens it."""
    return (
        "import torch\n\n"
        f'encoder = torch.export.load("{folder / PROGRAM}").module()\n'
        "patches, pooled = encoder(normalised)  # float32 [B, 3, H, W]"
    )
