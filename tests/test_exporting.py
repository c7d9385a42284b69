"""`cjepa export` of a run, its model card, and weights from elsewhere: evaluated, exported and trained further."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

import cjepa as package
from cjepa import runs
from cjepa.build import find_checkpoint, start_weights
from cjepa.cli import app
from cjepa.config import dump_yaml
from cjepa.config.presets import resolve
from cjepa.errors import InputError
from cjepa.evaluation.knn import KnnConfig
from cjepa.export import SafetensorsConfig, TimmConfig
from cjepa.models import EncoderConfig, Model
from cjepa.models.weights.contents import digest_of
from cjepa.models.weights.names import to_vit
from cjepa.runs import card_of, evaluate_run, export_run, pretrain, recording
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.rows import read_rows
from tests.encoders import pixels, transformer
from tests.tiny_runs import write_config, write_images

CONFIG = EncoderConfig(width=32, depth=1, heads=2, patch_size=4)
"""That of the tiny run."""


def cjepa(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    pretrain(resolve(str(write_config(folder.parent)), [f"data={images}"]), folder)
    evaluate_run(folder, [KnnConfig(k=(3,))])
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An I-JEPA checkpoint of random weights that fit the tiny run."""
    path = tmp_path_factory.mktemp("weights") / "jepa.pth.tar"
    parts = {
        name: {f"module.{key}": value for key, value in to_vit(meta(seed), CONFIG, (4, 4)).items()}
        for name, seed in (("encoder", 1), ("target_encoder", 2))
    }
    torch.save({**parts, "predictor": {}, "epoch": 3}, path)
    return path


def meta(seed: int) -> dict[str, torch.Tensor]:
    return transformer(CONFIG, seed).state_dict()


# --- export ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_largest_difference_and_how_to_load(run: Path, tmp_path: Path) -> None:
    result = cjepa("export", run, "--format", "timm", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "parity: patch embeddings: largest difference" in result.output
    assert "written: README.md, config.json, model.safetensors" in result.output
    assert "timm.create_model(" in result.output
    loaded = package.load_encoder(tmp_path / "out")
    torch.testing.assert_close(loaded(pixels(2, 16, 16)), package.load_encoder(run)(pixels(2, 16, 16)))


def test_bad_input_ends_with_2(run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([run, "--format", "tim", "--out", tmp_path / "x"], "there is no format tim; it is one of timm"),
        ([tmp_path, "--out", tmp_path / "x"], "is not a run folder"),
        ([run, "--out", run], "exists already"),
        ([run, "--out", tmp_path / "x", "opset=3"], "unknown key opset"),
    ):
        result = cjepa("export", *arguments)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split()), result.output
    assert not (tmp_path / "x").exists()


def test_help_lists_the_formats() -> None:
    result = cjepa("export", "--help")
    for name in ("safetensors", "transformers", "timm", "onnx", "torch-export", "opset=20"):
        assert name in result.output


def test_the_context_encoder_and_the_best_checkpoint(run: Path, tmp_path: Path) -> None:
    export_run(run, TimmConfig(), tmp_path / "context", which="context")
    expected = package.load_encoder(run, encoder="context")
    assert torch.equal(package.load_encoder(tmp_path / "context")(pixels(1, 16, 16)), expected(pixels(1, 16, 16)))
    assert "the context encoder after step 3" in (tmp_path / "context" / "README.md").read_text()


def test_a_best_checkpoint_from_before_the_training_is_told(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_run(run, SafetensorsConfig(), tmp_path / "last", checkpoint="last")
    assert "before any training" not in caplog.text
    other = Path(shutil.copytree(run, tmp_path / "other"))
    newest = find_checkpoint(other, "last")
    told = {**newest.state, "progress": newest.state["progress"] | {"best_step": 0}}
    CheckpointStore(other / "checkpoints").amend(newest, told, {0})
    export_run(other, SafetensorsConfig(), tmp_path / "best", checkpoint="best")
    assert "the best checkpoint is that of step 0, before any training" in caplog.text


def test_the_card_tells_the_run(run: Path, tmp_path: Path) -> None:
    export_run(run, TimmConfig(), tmp_path / "out", licence="cc-by-4.0: a\n")
    card = (tmp_path / "out" / "README.md").read_text()
    data = json.loads((run / "data.json").read_text())
    rows = {row["encoder"]: row["values"] for row in read_rows(run / "evaluations.jsonl")}
    assert card.startswith("---\nlibrary_name: timm\n")
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0: a\n"
    assert "48 images, source `folder`, without labels (folders name 3 classes" in card
    assert data["fingerprint"] in card
    assert f"| untrained encoder | {' | '.join(_shown(value) for value in rows['untrained'].values())} |" in card
    assert f"| target encoder, step 3 | {' | '.join(_shown(value) for value in rows['target'].values())} |" in card
    assert "before training, step 0" in card
    for title in ("Data", "Results", "Health of the training", "How to reproduce", "Limits", "Licence", "Citation"):
        assert f"\n## {title}\n" in card
    verdict = next(line for line in (run / "train.log").read_text().split("\n") if "step 3: " in line)
    assert verdict.split("step 3: ")[1].split(":")[0] in card, "the verdict is that of the log"
    assert "cjepa pretrain config.yaml" in card
    assert "path: " + resolve_path(run) in card
    assert str(run) not in card
    assert str(tmp_path) not in card
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert huggingface_hub.ModelCard(card).data.license == "cc-by-4.0: a\n", "the head is YAML that the Hub reads"


def test_the_card_names_the_objective_and_no_folder_of_the_cache(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    (other / "evaluations.jsonl").unlink()
    values = yaml.safe_load((other / "config.yaml").read_text())
    values["data"]["cache"] = str(tmp_path / "cache-of-mine")
    values["objective"] = {"name": "ijepa"}
    (other / "config.yaml").write_text(yaml.safe_dump(values))
    card = card_of(other)
    assert "@inproceedings{assran2023self," in card.citation
    assert "@inproceedings{mo2024connecting," in card_of(run).citation
    assert str(tmp_path) not in card.recipe
    assert "cache: cache-of-mine" in card.recipe
    assert "objective `ijepa`" in card.summary
    assert "by C-JEPA" not in card.summary


def test_the_card_tells_evaluations_of_one_name_apart_and_what_their_percent_are_of(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    row = next(row for row in read_rows(run / "evaluations.jsonl") if row["encoder"] == "target")
    four = row | {"protocol": row["protocol"] | {"pooling": {"layers": 4, "norm": "patches"}}}
    protocol = {"name": "video", "context": 7, "sequences": 2, "frames": 12}
    video = row | {"name": "video", "protocol": protocol, "values": {"JF_mean": 40.0}}
    with (other / "evaluations.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in (four, video))
    titles = [table.title for table in card_of(other).results][-3:]
    images = f"knn, percent of {row['protocol']['test_images']} test images"
    assert titles == [
        f'{images} (pooling {{"layers": 1, "norm": "patches"}})',
        f'{images} (pooling {{"layers": 4, "norm": "patches"}})',
        "video, percent",
    ]
    assert [table.title for table in card_of(run).results][-1] == images


def test_the_card_of_weights_in_the_working_directory_has_a_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(run, SafetensorsConfig(), tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert card_of(Path()).title == "mine"
    assert card_of(tmp_path / "mine").title == "mine"


def _shown(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def resolve_path(run: Path) -> str:
    from cjepa.build import read_config

    return read_config(run).data.source.path.name  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("objective", "method", "tags"),
    [
        ("cjepa-context", "C-JEPA (Contrastive-JEPA)", ["jepa", "c-jepa"]),
        ("ijepa", "I-JEPA", ["jepa", "i-jepa"]),
        ("vicreg", "VICReg", ["vicreg"]),
    ],
)
def test_the_card_names_the_method_that_trained_it(
    run: Path, tmp_path: Path, objective: str, method: str, tags: list[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "config.yaml").write_text(dump_yaml(resolve(str(run / "config.yaml"), [f"objective={objective}"])))
    export_run(copy, TimmConfig(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Pre-trained by {method} on unlabelled images" in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["tags"] == ["self-supervised-learning", *tags, "vision-transformer"]
    assert ("predict masked patches trail" in card) == ("jepa" in tags), "no fault of two-view methods"
    assert "stored for this size; at others the library interpolates them" in card
    export_run(copy, SafetensorsConfig(), tmp_path / "ours")
    assert "computed for whatever grid comes" in (tmp_path / "ours" / "README.md").read_text()


def test_a_run_of_an_older_version_has_a_card_too(run: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(run, tmp_path / "old"))
    for name in ("data.json", "evaluations.jsonl", "metrics.jsonl", "environment.json"):
        (old / name).unlink()
    card = card_of(old)
    assert card.health == "Not recorded by the version that trained it."
    assert card.results == []
    export_run(old, TimmConfig(), tmp_path / "out")
    assert "None recorded" in (tmp_path / "out" / "README.md").read_text()


# --- weights from elsewhere -----------------------------------------------------------------------------------------


def test_foreign_weights_are_evaluated_and_exported_like_our_own(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TimmConfig()
    with pytest.raises(InputError, match="a width of 32 is that of no named size"):
        export_run(checkpoint, config, tmp_path / "none")
    told = cjepa("evaluate", "knn", checkpoint, "k=[3]", "--images", images, "--heads", 2, "--batch-size", 5)
    assert told.exit_code == 0, told.output
    assert f"kept in {checkpoint}.evaluations.jsonl" in "".join(told.output.split("\n"))
    exported = cjepa("export", checkpoint, "--format", "timm", "--heads", 2, "--out", tmp_path / "with heads")
    assert exported.exit_code == 0, exported.output
    embedded = cjepa("embed", checkpoint, images, "--heads", 2, "--out", tmp_path / "embedded.npy")
    assert embedded.exit_code == 0, embedded.output
    monkeypatch.setattr("cjepa.models.weights.fitting.SIZES", {"tiny": (32, 1, 2)})
    export_run(checkpoint, config, tmp_path / "out", licence="cc-by-nc-4.0")
    expected = package.load_encoder(checkpoint)
    assert torch.equal(package.load_encoder(tmp_path / "out")(pixels(1, 16, 16)), expected(pixels(1, 16, 16)))
    for weights in (checkpoint, tmp_path / "out"):
        with pytest.raises(InputError, match="name a folder of labelled ones with --images"):
            evaluate_run(weights, [KnnConfig(k=(3,))])
        results = evaluate_run(weights, [KnnConfig(k=(3,))], images=images)
        assert [result.encoder for result in results] == ["raw pixels", "colour statistics", "untrained", "target"]
    one, other = (results_of(path) for path in (checkpoint, tmp_path / "out"))
    assert one == other
    again = tmp_path / "again"
    export_run(tmp_path / "out", config, again)
    card = (again / "README.md").read_text()
    assert "how they were trained is not recorded" in card
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["self-supervised-learning", "vision-transformer"]
    assert "| target encoder |" in card


def test_damaged_files_of_a_run_are_left_out_of_its_card(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    assert "\n  start: null\n" in config
    (copy / "config.yaml").write_text(config.replace("\n  start: null\n", "\n  start: weights/jepa.pth.tar\n"))
    for name, content in (("environment.json", b'{"python": "3.1'), ("data.json", b"\xff"), ("start.json", b"[1]")):
        (copy / name).write_bytes(content)
    card = card_of(copy)
    assert "(version unknown)" in "\n".join(card.reproduce)
    assert "from the weights jepa.pth.tar (format unknown, sha256 not recorded); their licence" in card.ancestry
    for name in ("environment.json", "data.json", "start.json"):
        assert f"{copy / name} cannot be read and is left out" in caplog.text


def results_of(path: Path) -> list[dict[str, float]]:
    from cjepa.runs.evaluating import results_path

    return [row["values"] for row in read_rows(results_path(path))]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "draw_pictures", lambda runs, folder: [])


@pytest.mark.usefixtures("no_pictures")
def test_pretraining_goes_on_from_a_checkpoint_of_ijepa(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    tiny, folder = write_config(tmp_path), tmp_path / "further"
    result = cjepa("pretrain", tiny, f"data={images}", f"model.start={checkpoint}", "--out", folder)
    assert result.exit_code == 0, result.output
    assert "start: encoder and target encoder from" in result.output
    first = folder / "checkpoints" / "step-00000000"
    assert first.is_dir()
    from safetensors.torch import load_file

    for name, seed in (("encoder", 1), ("target_encoder", 2)):
        saved = load_file(first / f"{name}.safetensors")
        assert all(torch.equal(saved[key], value) for key, value in meta(seed).items())
    start = json.loads((folder / "start.json").read_text())
    assert start["sha256"] == digest_of(meta(2), meta(1))
    assert start["format"] == "I-JEPA checkpoint"
    last = find_checkpoint(folder, "last").tensors("encoder")
    assert not torch.equal(last["norm.weight"], meta(1)["norm.weight"]), "and it trains"
    checkpoint_moved = checkpoint.with_name("gone.pth.tar")
    checkpoint.rename(checkpoint_moved)
    again = cjepa("pretrain", tiny, f"data={images}", f"model.start={checkpoint}", "--out", folder)
    checkpoint_moved.rename(checkpoint)
    assert again.exit_code == 0, "continuing needs the checkpoint of the run, not the weights it started from"
    card = card_of(folder)
    assert start["sha256"] in card.ancestry
    assert str(checkpoint.parent) not in card.ancestry + card.recipe


def test_pretraining_goes_on_from_a_run_or_an_export(run: Path, images: Path, tmp_path: Path) -> None:
    export_run(run, TimmConfig(), tmp_path / "timm")
    expected = package.load_encoder(run).digest()
    for number, start in enumerate((run, tmp_path / "timm")):
        folder = tmp_path / f"run{number}"
        pretrain(resolve(str(write_config(tmp_path)), [f"data={images}", f"model.start={start}"]), folder)
        from safetensors.torch import load_file

        first = folder / "checkpoints" / "step-00000000" / "target_encoder.safetensors"
        assert digest_of(load_file(first)) == expected


def test_pictures_drawn_later_begin_with_the_weights_that_the_run_began_with(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "further"
    seen: dict[int, str] = {}
    config = resolve(str(write_config(tmp_path)), [f"data={images}", f"model.start={run}"])
    pretrain(config, folder)

    def keep(_store: object, _config: object, model: Model, _monitor: object, step: int) -> None:
        seen[step] = digest_of(model.target_encoder.state_dict())

    monkeypatch.setattr(recording, "keep_snapshot", keep)
    recording.record_checkpoints(folder, config)
    assert seen[0] == package.load_encoder(run).digest()
    assert seen[max(seen)] == package.load_encoder(folder).digest() != seen[0]


def test_weights_of_another_normalisation_are_refused_with_their_own(
    run: Path, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    export_run(run, TimmConfig(), tmp_path / "timm")
    changes = [f"data={images}", "data.mean=[0.5, 0.5, 0.5]", "data.std=[0.5, 0.5, 0.5]"]
    for start in (run, tmp_path / "timm"):
        config = resolve(str(write_config(tmp_path)), [*changes, f"model.start={start}"])
        with pytest.raises(InputError) as caught:
            start_weights(config)
        assert "another normalisation than data.mean=[0.5, 0.5, 0.5] and data.std=[0.5, 0.5, 0.5]" in str(caught.value)
        given = re.findall(r"'(data\.(?:mean|std)=.*?)'", str(caught.value))
        assert (
            start_weights(resolve(str(write_config(tmp_path)), [*changes, *given, f"model.start={start}"])) is not None
        )
    silent = resolve(str(write_config(tmp_path)), [*changes, f"model.start={checkpoint}"])
    assert start_weights(silent) is not None, "a checkpoint that does not say how its images were normalised"


def test_weights_of_another_encoder_are_refused_with_every_difference(
    checkpoint: Path, run: Path, images: Path, tmp_path: Path
) -> None:
    changes = [f"data={images}", "model.encoder.width=48", "model.encoder.depth=2", "model.encoder.position_scale=0.5"]
    for start in (checkpoint, run):
        config = resolve(str(write_config(tmp_path)), [*changes, f"model.start={start}"])
        with pytest.raises(InputError) as caught:
            pretrain(config, tmp_path / "other")
        for line in ("width=48, but the weights are of 32", "depth=2, but the weights are of 1", "position_scale=0.5"):
            assert line in str(caught.value)
    with pytest.raises(InputError, match="is not a run folder"):
        pretrain(resolve(str(write_config(tmp_path)), [f"data={images}", "model.start=/nowhere"]), tmp_path / "none")
