"""Imports point one way (docs/design.md), and `import cjepa` is light."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "cjepa"
LAYERS = (
    {"cjepa", "__main__"},  # the package itself, which offers its names on first use
    {"cli"},
    {"runs"},
    {"build"},
    {"config"},
    {"training", "evaluation", "visualization", "export", "embedding"},
    {"models", "objectives", "masking", "data"},
    {"ranks"},
    {"types", "errors", "randomness"},
)
"""From the top down. A unit is a folder or a file of the package with its NAME_*.py; it imports lower layers only."""


@cache
def modules() -> dict[str, str]:
    """The source of every module of the package, by dotted name."""
    files = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {
        ".".join(name.parts).removesuffix(".__init__"): path.read_text(encoding="utf-8") for name, path in files.items()
    }


def unit(module: str) -> str:
    """The part of the package that a module belongs to: cjepa.config_yaml -> config, cjepa.models.vit -> models."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    return name if name.startswith("_") else name.split("_")[0]


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


@cache
def import_statements(source: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(source: str, known: Mapping[str, str]) -> set[str]:
    """The modules of the package that a source imports, anywhere in it."""
    found = set()
    for node in import_statements(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, "relative imports hide the direction; write cjepa.X"
            assert node.module is not None
            members = {f"{node.module}.{alias.name}" for alias in node.names} - {"cjepa.__version__"}  # defined on top
            found |= {member if member in known else node.module for member in members}
    return {name for name in found if name.split(".")[0] == "cjepa"}


def violations(known: Mapping[str, str]) -> list[str]:
    """Imports that do not point down, and modules without a layer."""
    homeless = [
        f"{name}: unit {unit(name)} has no layer" for name in known if not any(unit(name) in la for la in LAYERS)
    ]
    if homeless:
        return homeless
    return [
        f"{name} imports {other}"
        for name, source in sorted(known.items())
        for other in sorted(imported(source, known))
        if unit(other) != unit(name) and layer(unit(other)) <= layer(unit(name))
    ]


def test_imports_point_down() -> None:
    assert violations(modules()) == []


def test_the_walk_sees_the_package() -> None:
    known = modules()
    assert {"cjepa", "cjepa.types", "cjepa.models.vit", "cjepa.training.trainer"} <= set(known)
    assert "cjepa.models.blocks" in imported(known["cjepa.models.vit"], known)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cjepa.models.vit", "from cjepa.training.trainer import Trainer"),
        ("cjepa.models.vit", "import cjepa.masking.blocks"),
        ("cjepa.models.vit", "def late():\n    from cjepa import masking"),
        (
            "cjepa.types",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cjepa.models.vit import EncoderConfig",
        ),
        ("cjepa.errors", "from cjepa.types import Part"),
        ("cjepa.evaluation.knn", "from cjepa.training.trainer import Trainer"),
        ("cjepa.config_yaml", "import cjepa.build"),
        ("cjepa.data.folder", "from cjepa import load_encoder"),
        ("cjepa.novel", ""),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    seen = violations({**modules(), module: source})
    assert any(line.startswith((f"{module} imports", f"{module}: ")) for line in seen)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cjepa.training.trainer", "from cjepa.models import JEPA"),
        ("cjepa.config_yaml", "from cjepa.config import RunConfig"),
        ("cjepa.cli_more", "from cjepa import build"),
        ("cjepa.training.environment", "from cjepa import __version__"),
    ],
)
def test_a_right_import_is_not_reported(module: str, source: str) -> None:
    assert not any(line.startswith(module) for line in violations({**modules(), module: source}))


HEAVY = {"torch", "pydantic", "numpy", "sklearn", "matplotlib", "skimage", "jaxtyping", "PIL"}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_is_light() -> None:
    assert loaded_by("import cjepa; cjepa.__version__").isdisjoint(HEAVY)


def test_the_public_names_need_no_extra() -> None:
    """Loading an encoder imports neither another library's formats nor what training alone needs."""
    extras = {"transformers", "timm", "onnx", "onnxruntime", "pyarrow", "huggingface_hub", "tensorboard", "wandb"}
    assert loaded_by("import cjepa; cjepa.load_encoder; cjepa.PretrainedEncoder").isdisjoint(extras | {"matplotlib"})


def test_the_import_takes_less_than_half_a_second() -> None:
    """Beyond torch, which `import cjepa` does not even load: the fastest of three, since the machine may be busy."""
    script = "import time; start = time.perf_counter(); import cjepa; print(time.perf_counter() - start)"
    times = [
        float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.5


def test_heavy_packages_are_seen_where_they_are_loaded() -> None:
    assert "numpy" in loaded_by("import cjepa.randomness")
