"""The reference of the Python API, made from docstrings by pdoc: python docs/reference.py FOLDER (or `make docs`)."""

import sys
from pathlib import Path

import pdoc

import cjepa

MODULES = (
    *("cjepa", "cjepa.runs", "cjepa.build", "cjepa.types", "cjepa.errors", "cjepa.data", "cjepa.models"),
    *("cjepa.models.pretrained", "cjepa.models.weights", "cjepa.objectives", "cjepa.masking", "cjepa.evaluation"),
    *("cjepa.export", "cjepa.embedding", "cjepa.training.trainer", "cjepa.config"),
)
"""What a program may use; what cjepa itself offers stays, the rest may change between versions."""


def main(folder: Path) -> None:
    """Write the pages, index.html first."""
    for name in cjepa.__all__:  # pdoc looks into the module, where names that are imported on first use are not yet
        setattr(cjepa, name, getattr(cjepa, name))
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"cjepa {cjepa.__version__}")
    pdoc.pdoc(*MODULES, output_directory=folder)
    print(f"written: {folder / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
