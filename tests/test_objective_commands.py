"""The whole command for every family of objectives: training to its end, pictures and report, nothing replaced."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cjepa.cli import app
from tests.tiny_runs import write_config, write_images

MASKS, VIEWS = {"masks.png", "coverage.png"}, {"views.png"}
FAMILIES = {
    "ijepa": MASKS,
    "cjepa": MASKS,
    "cjepa-context": MASKS,
    "vicreg": VIEWS,
    "simsiam": VIEWS,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_pretraining_ends_with_pictures_and_a_report(name: str, tmp_path: Path) -> None:
    images, run = write_images(tmp_path / "images", classes=("a", "b"), count=8), tmp_path / "run"
    changes = [f"data={images}", f"objective={name}", "training.epochs=2", "logging.report=true"]
    changes += ["objective.projector.width=16"] if name != "ijepa" else []
    changes += ["model.encoder.patch_size=8"] if FAMILIES[name] == VIEWS else []  # a grid too small for masks
    result = CliRunner().invoke(app, ["pretrain", str(write_config(tmp_path)), *changes, "--out", str(run)])
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    assert {path.name for path in (run / "pictures").iterdir()} & (MASKS | VIEWS) == FAMILIES[name]
    assert f"report: {run / 'report' / 'index.html'}" in result.output
    assert (run / "report" / "index.html").read_text().count("<svg") > 1
