"""Runs of two views do what all runs do: they are evaluated, reported, drawn, planned and exported."""

from pathlib import Path

import pytest
import torch

import cjepa
from cjepa.config.presets import resolve
from cjepa.errors import InputError
from cjepa.evaluation.knn import KnnConfig
from cjepa.export.safetensors_folder import SafetensorsConfig
from cjepa.runs import evaluate_run, export_run, plan, pretrain, visualize, write_report
from cjepa.training.metrics import read_metrics
from tests.tiny_runs import write_config, write_images

NAMES = {
    "vicreg": ["objective=vicreg", "objective.projector.width=24"],
    "simsiam": ["objective=simsiam", "objective.projector.width=24", "objective.hidden=8"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", params=NAMES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    config = resolve(str(write_config(folder)), [f"data={images}", *NAMES[request.param]])
    pretrain(config, folder / "run")
    return folder / "run"


def test_it_is_measured_as_every_run(run: Path) -> None:
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "evaluation"]
    assert {"effective_rank", "explained_variance", "knn_20_centred"} <= rows[-1].keys()
    assert rows[-1]["explained_variance"] <= 1.0
    assert {result.encoder for result in evaluate_run(run, [KnnConfig(k=(3,))])} >= {"target", "untrained"}


def test_there_are_no_masks_to_draw_and_the_report_says_so(run: Path, images: Path, tmp_path: Path) -> None:
    page = write_report({"two views": run}, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "predictor of patches" in page
    assert "Patches in the context" not in page
    assert visualize("pca", run, images, tmp_path / "pictures", device="cpu")
    with pytest.raises(InputError, match="has no masks to draw"):
        visualize("masks", run, images, tmp_path / "pictures", device="cpu")


def test_what_was_learned_leaves_as_any_encoder(run: Path, tmp_path: Path) -> None:
    export_run(run, SafetensorsConfig(), tmp_path / "exported")
    batch = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    found, exported = cjepa.load_encoder(run), cjepa.load_encoder(tmp_path / "exported")
    torch.testing.assert_close(exported.embed(batch), found.embed(batch))
    assert not torch.equal(found.embed(batch), cjepa.load_encoder(run, checkpoint="untrained").embed(batch))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_planned(name: str, images: Path, tmp_path: Path) -> None:
    config = resolve(str(write_config(tmp_path)), [f"data={images}", *NAMES[name]])
    found = plan(config, "cpu", 1, 48)
    assert found.seconds_per_image is not None
    assert found.footprint.operations > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_that_is_too_small_for_masks_does(name: str, images: Path, tmp_path: Path) -> None:
    small = [f"data={images}", "model.encoder.patch_size=8"]
    config = resolve(str(write_config(tmp_path)), [*small, *NAMES[name]])
    assert config.grid == (2, 2)
    assert plan(config, "cpu", 1, 48).seconds_per_image is not None
    with pytest.raises(InputError, match="on a grid of 2 x 2"):
        resolve(str(write_config(tmp_path)), [*small, "objective=cjepa"])


def test_masks_that_no_objective_could_use_do_not_matter(images: Path, tmp_path: Path) -> None:
    """Blocks are not compared, so one target is enough."""
    config = resolve(str(write_config(tmp_path)), [f"data={images}", *NAMES["vicreg"], "masking.targets=1"])
    assert config.masking.targets == 1
    with pytest.raises(InputError, match="compares the target blocks"):
        resolve(str(write_config(tmp_path)), [f"data={images}", "objective=cjepa", "masking.targets=1"])
