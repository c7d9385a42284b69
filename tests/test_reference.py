"""The reference of the API is made from docstrings; every public name has one, with types and shapes."""

import html
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cjepa

ROOT = Path(__file__).parents[1]


def test_the_pages_are_made_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    command = [sys.executable, str(ROOT / "docs" / "reference.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Warn" not in result.stderr
    page = (tmp_path / "cjepa.html").read_text(encoding="utf-8")
    for name in cjepa.__all__:
        assert f'id="{name}"' in page, name
    assert 'id="PretrainedEncoder.embed"' in page
    shown = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert "images: jaxtyping.Shaped[Tensor, 'B 3 H W']) -> jaxtyping.Float[Tensor, 'B D']" in shown
    assert (tmp_path / "cjepa" / "runs.html").exists()


@pytest.mark.parametrize("name", ["load_encoder", "PretrainedEncoder", "HubEncoder"])
def test_public_names_have_types_and_docstrings(name: str) -> None:
    member = getattr(cjepa, name)
    assert inspect.getdoc(member)
    functions = [member] if inspect.isfunction(member) else [member.__init__, member.forward, member.embed]
    for function in functions:
        signature = inspect.signature(function)
        assert all(p.annotation is not p.empty for key, p in signature.parameters.items() if key != "self")


def test_unknown_names_are_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cjepa.nothing  # type: ignore[attr-defined]
