"""A torch.export program: the encoder as a graph that needs torch, but not this package."""

from pathlib import Path
from typing import Literal

import torch

from cjepa.export.parity import Difference, compare, probe, sizes
from cjepa.export.preparation import NOTE, preparation_text
from cjepa.export.traceable import trace
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.types import Part

PROGRAM = "encoder.pt2"
NOTED = f"{NOTE}.json"
"""The extra file in it that says how images become inputs."""


class ProgramConfig(Part):
    """encoder.pt2 for torch.export.load: normalised images of any batch, height and width to (patches, pooled)."""

    name: Literal["torch-export"] = "torch-export"


def write_program(encoder: PretrainedEncoder, folder: Path) -> None:
    """Write the graph into an existing folder, with how images become its inputs."""
    torch.export.save(trace(encoder), folder / PROGRAM, extra_files={NOTED: preparation_text(encoder)})


def check_program(encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    """The program that the file gives back against the encoder, at three sizes."""
    files = {NOTED: ""}
    module = torch.export.load(folder / PROGRAM, extra_files=files).module()
    assert files[NOTED] == preparation_text(encoder)
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
        "import json\n\nimport torch\n\n"
        f'files = {{"{NOTED}": ""}}  # filled while the program is loaded\n'
        f'encoder = torch.export.load("{folder / PROGRAM}", extra_files=files).module()\n'
        f'how = json.loads(files["{NOTED}"])  # how["steps"] says it in words\n'
        'mean, std = (torch.tensor(how[key]).view(3, 1, 1) for key in ("mean", "std"))\n'
        "patches, pooled = encoder((images / 255 - mean) / std)  # images: uint8 [B, 3, H, W]"
    )
