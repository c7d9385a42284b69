"""What the commands do, where the command line does not show it."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from cjepa import runs
from cjepa.build import read_config
from cjepa.config import RunConfig, differences
from cjepa.config.presets import resolve
from cjepa.errors import InputError
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.models import kernels
from cjepa.runs import Outcome, diagnose, evaluate_run, pretrain, pretraining, run_demo
from cjepa.runs.demo import Row, conclude
from cjepa.runs.evaluating import Result
from cjepa.training.metrics import read_metrics
from cjepa.training.rows import read_rows
from tests.tiny_runs import write_config, write_images

SMALL_DEMO = (
    "data.source.train_crops=6",
    "data.source.test_crops=4",
    "data.source.photograph_size=128",
    "data.source.crop_size=[32,64]",
    "data.source.tile_size=16",
    "data.image_size=16",
    "model.encoder.width=32",
    "model.encoder.depth=1",
    "model.encoder.heads=2",
    "model.encoder.patch_size=4",
    "model.predictor.width=16",
    "model.predictor.depth=1",
    "model.predictor.heads=2",
    "training.batch_size=36",
    "training.epochs=1",
    "training.optimizer.learning_rate.warmup_epochs=0.3",
    "training.evaluate_every=1",
    "training.checkpoint_every=1",
    "training.device=cpu",
    "logging.report_share=0",
)
"""Three steps on 108 tiles."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, images: Path) -> RunConfig:
    return resolve(str(write_config(tmp_path_factory.mktemp("config"))), [f"data={images}"])


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Outcome:
    return pretrain(config, tmp_path_factory.mktemp("runs") / "run")


# --- pretraining ----------------------------------------------------------------------------------------------------


def test_an_outcome_holds_the_first_and_the_last_evaluation(outcome: Outcome) -> None:
    rows = [row for row in read_metrics(outcome.folder / "metrics.jsonl") if row["split"] == "evaluation"]
    without = [{key: value for key, value in row.items() if key not in ("step", "split")} for row in rows]
    assert outcome.steps == 3
    assert (outcome.untrained, outcome.trained) == (without[0], without[-1])
    assert outcome.quality == "knn_20_centred"
    assert (
        max(without, key=lambda row: row[outcome.quality])
        == without[[r["step"] for r in rows].index(outcome.best_step)]
    )


def test_the_data_of_a_run_is_described(outcome: Outcome) -> None:
    data = json.loads((outcome.folder / "data.json").read_text())
    assert (data["images"], data["classes"], data["steps"]) == (48, ["a", "b", "c"], 3)
    assert len(data["fingerprint"]) == 64


def test_the_log_level_is_left_as_it_was(outcome: Outcome, config: RunConfig, tmp_path: Path) -> None:
    package = logging.getLogger("cjepa")
    before = (package.level, list(package.handlers))
    with pytest.raises(InputError):
        pretrain(config.model_copy(update={"seed": 1}), outcome.folder)
    assert (package.level, package.handlers) == before


def test_a_run_is_its_config_and_nothing_else(config: RunConfig, outcome: Outcome, tmp_path: Path) -> None:
    """Same config, other folder, after other work in the same process: the same numbers."""
    np.random.seed(3)
    again = pretrain(config, tmp_path / "again")
    assert (again.untrained, again.trained) == (outcome.untrained, outcome.trained)
    other = pretrain(config.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other.trained != outcome.trained


# --- evaluation -----------------------------------------------------------------------------------------------------


def by_encoder(results: list[Result]) -> dict[str, dict[str, float]]:
    return {result.encoder: result.values for result in results}


def test_the_evaluation_agrees_with_the_monitor(outcome: Outcome) -> None:
    """Few enough images that both see all of them."""
    found = by_encoder(evaluate_run(outcome.folder, [KnnConfig(k=(20,))]))
    for encoder, values in (("untrained", outcome.untrained), ("target", outcome.trained)):
        assert found[encoder]["knn_20_centred"] == pytest.approx(values["knn_20_centred"])
        assert found[encoder]["knn_20"] == pytest.approx(values["knn_20"])


def test_one_call_for_several_evaluations(outcome: Outcome) -> None:
    evaluations = (KnnConfig(k=(3,)), LinearConfig(inverse_regularisation=(0.1,)))
    results = evaluate_run(outcome.folder, evaluations, comparisons=False)
    assert [(result.name, result.encoder, result.step) for result in results] == [
        ("knn", "target", 3),
        ("linear", "target", 3),
    ]
    assert evaluate_run(outcome.folder, evaluations, comparisons=False) == results


@pytest.mark.parametrize("began", ["bfloat16", "float32"])
def test_a_run_keeps_the_precision_that_it_began_with(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, began: str
) -> None:
    left_open = config.model_copy(update={"training": config.training.model_copy(update={"precision": "auto"})})
    for fast in (began == "bfloat16", began != "bfloat16"):  # begun on one machine, continued on another
        for place in (kernels, pretraining):
            monkeypatch.setattr(place, "has_fast_bfloat16", lambda _, fast=fast: fast)
        caplog.clear()
        with caplog.at_level("WARNING", "cjepa"):
            pretrain(left_open, tmp_path)
        assert read_config(tmp_path).training.precision == began
        assert ("no instructions for bfloat16" in caplog.text) == (began == "bfloat16" and not fast)
    [*_, result] = evaluate_run(tmp_path, [KnnConfig()], comparisons=False)
    assert result.protocol["precision"] == "float32", "begun in it, or bfloat16 is slow here"


def test_labels_decide_nothing_but_the_evaluation(config: RunConfig, images: Path, tmp_path: Path) -> None:
    """The same images in one folder, without classes, in the same order: the same losses."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(images.rglob("*.png")):
        os.link(path, flat / path.name)
    other = config.model_copy(
        update={"data": config.data.model_copy(update={"source": config.data.source.model_copy(update={"path": flat})})}
    )
    labelled, unlabelled = pretrain(config, tmp_path / "a"), pretrain(other, tmp_path / "b")
    assert unlabelled.quality == "crop_retrieval"
    losses = [
        [row["loss"] for row in read_metrics(each.folder / "metrics.jsonl") if row["split"] == "train"]
        for each in (labelled, unlabelled)
    ]
    assert losses[0] == losses[1]


def test_images_without_a_label_are_left_out(outcome: Outcome, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "some", ("a", "b", ""), 12)
    results = evaluate_run(outcome.folder, [KnnConfig(k=(1,))], images=folder, comparisons=False)
    assert results[0].protocol["train_images"] + results[0].protocol["test_images"] == 24
    assert results[0].protocol["classes"] == 2


def test_a_test_folder_is_used_and_needs_labelled_training_images(outcome: Outcome, tmp_path: Path) -> None:
    write_images(tmp_path / "train", count=5)
    write_images(tmp_path / "test", count=3, seed=1)
    results = evaluate_run(outcome.folder, [KnnConfig(k=(1,))], images=tmp_path, comparisons=False)
    assert (results[0].protocol["train_images"], results[0].protocol["test_images"]) == (15, 9)
    for path in sorted((tmp_path / "train").rglob("*.png")):
        path.rename(tmp_path / "train" / path.name)
    with pytest.raises(InputError, match="no labels to evaluate with"):
        evaluate_run(outcome.folder, [KnnConfig(k=(1,))], images=tmp_path)


def test_other_images_or_sizes_are_another_protocol(outcome: Outcome, tmp_path: Path) -> None:
    first = write_images(tmp_path / "first", count=6)
    second = write_images(tmp_path / "second", count=7)
    for folder in (first, second):
        evaluate_run(outcome.folder, [KnnConfig(k=(2,))], images=folder)
    rows = [row for row in read_rows(outcome.folder / "evaluations.jsonl") if row["protocol"].get("k") == [2]]
    assert len(rows) == 8
    assert len({row["protocol"]["images"] for row in rows}) == 2


def test_a_run_folder_that_cannot_be_written_still_shows_its_values(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cjepa.runs.evaluating.RowLog.append", refuse)
    results = evaluate_run(outcome.folder, [KnnConfig(k=(7,))], comparisons=False)
    assert "knn_7" in results[0].values
    assert "the values are shown but not kept" in caplog.text


def test_lines_of_other_tools_are_left_alone(outcome: Outcome) -> None:
    with (outcome.folder / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 3, "name": "mine", "accuracy": 1}\n')
    assert evaluate_run(outcome.folder, [KnnConfig(k=(4,))], comparisons=False)
    assert '"mine"' in (outcome.folder / "evaluations.jsonl").read_text()


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_a_diagnosis_verifies_every_checkpoint(outcome: Outcome) -> None:
    found = diagnose(outcome.folder)
    assert set(found.checkpoints) >= {0, 3}
    assert all(problems == [] for problems in found.checkpoints.values())
    assert (found.used, found.complete, found.steps, found.images) == (3, True, 3, 48)


# --- demo -----------------------------------------------------------------------------------------------------------


def test_the_demo_compares_both_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    demo = run_demo(tmp_path, SMALL_DEMO)
    assert [row.features for row in demo.rows] == [
        "raw pixels",
        "colour statistics",
        "untrained encoder",
        "I-JEPA",
        "C-JEPA",
    ]
    assert all(0 <= value <= 100 for row in demo.rows for value in (row.knn, row.knn_centred, row.linear))
    assert demo.test_images == 18 * 4
    assert {path.name for path in demo.pictures} >= {"curves.png", "neighbours.png"}
    assert all(path.is_file() for path in demo.pictures)
    assert demo.conclusion.startswith("C-JEPA reaches")
    both = [resolve(str(tmp_path / name / "config.yaml")) for name in ("cjepa", "ijepa")]
    assert all(line.startswith("objective.") for line in differences(*both)), "nothing but the objective differs"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert len(before) == 6
    assert demo.report == tmp_path / "report" / "index.html"
    assert "C-JEPA minus I-JEPA" in demo.report.read_text()
    monkeypatch.setattr(runs.demo, "draw_pictures", lambda runs, folder: [])
    monkeypatch.setattr(runs.demo, "write_report", lambda runs, path: path)
    again = run_demo(tmp_path, SMALL_DEMO)
    assert again.rows[-1] == demo.rows[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


def row(features: str, *values: float) -> Row:
    return Row(features, *map(float, values))


BEATEN = [
    row("raw pixels", 40, 40, 50),
    row("colour statistics", 30, 31, 35),
    row("untrained encoder", 45, 46, 48, 9),
]


def test_the_conclusion_follows_the_numbers() -> None:
    ijepa, cjepa = row("I-JEPA", 47, 48, 55, 6), row("C-JEPA", 60, 61.5, 70, 13.9)
    text = conclude([*BEATEN, ijepa, cjepa], 2000)
    assert "C-JEPA reaches 61.5 % by 20 neighbours (centred) and 70.0 % linearly" in text
    assert "that is +15.5 and +20.0 points" in text
    assert "it is +13.5 and +15.0 points (up to 2.9 are noise)" in text
    assert "13.9 effective dimensions instead of 6.0" in text
    assert "it is -13.5 and -15.0 points" in conclude([*BEATEN, cjepa, ijepa], 2000)


def test_the_conclusion_calls_noise_noise() -> None:
    ijepa, cjepa = row("I-JEPA", 47, 48, 55, 6), row("C-JEPA", 48, 49, 54, 7)
    assert "it is +1.0 and -1.0 points (no more than noise, 3.2)" in conclude([*BEATEN, ijepa, cjepa], 2000)


def test_a_warm_up_that_goes_down_is_told(config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    low = config.model_dump(mode="json")
    low["training"]["optimizer"]["learning_rate"] |= {"start": 1e-4, "peak": 5e-5, "warmup_epochs": 0.3}
    with caplog.at_level("WARNING", "cjepa"):
        pretrain(RunConfig.model_validate(low), tmp_path / "low")
    assert "the warm-up goes down: training.optimizer.learning_rate.start=0.0001 is above its peak=5e-05" in caplog.text
