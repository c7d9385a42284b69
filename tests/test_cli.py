"""The command line: what it refuses and how it says so, what it prints, and that a stopped run goes on."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner, Result

from cjepa import __version__, cli, runs
from cjepa.cli import app
from cjepa.config import RunConfig, describe_keys, parse, read_yaml
from cjepa.config.presets import preset_facts, preset_names, resolve
from cjepa.evaluation.monitor import Monitor
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.runs.doctor import EXTRAS, environment
from cjepa.training.metrics import read_metrics
from cjepa.training.rows import read_rows
from cjepa.training.run_folder import RunFolder
from cjepa.training.state import Taken
from cjepa.training.trainer import Trainer
from cjepa.types import Batch
from tests.tiny_runs import TINY, write_config, write_images

ROOT = Path(__file__).parents[1]


def cjepa(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    """The output in one line, so that a message is found wherever it was wrapped."""
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: Path, tiny: Path) -> tuple[Path, Result]:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    return run, cjepa("pretrain", tiny, f"data={images}", "--out", run)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds; the fixture `finished`, made before this one, draws them once."""
    monkeypatch.setattr(runs, "draw_pictures", lambda runs, folder: [])


@pytest.fixture
def run(tmp_path: Path, finished: tuple[Path, Result]) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


# --- pretrain -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["pretrain", "small-96"], ["demo"]])
def test_programs_keep_freed_memory_before_they_train(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def kept() -> bool:
        raise KeyError("kept")

    monkeypatch.setattr("cjepa.training.device_memory.keep_freed_memory", kept)
    result = cjepa(*command)
    assert isinstance(result.exception, KeyError)


def test_pretrain_says_what_it_does_and_what_came_of_it(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert result.exit_code == 0, result.output
    output = said(result)
    assert "data: 48 images, 3 classes, used to evaluate only" in output
    assert "4 x 4 patches of 4 px" in output
    assert "objective cjepa-context, 3 steps of 16 images (1 epochs) in float32 on cpu" in output
    assert "pretrain 3/3" in output
    assert "before trained" in output
    assert "effective_rank" in output
    assert "verdict: " in output
    assert "best knn_20_centred: at step" in output
    assert f"run folder: {folder}" in output
    assert f"next: cjepa evaluate linear {folder}" in output
    assert f"pictures: {folder / 'pictures'}" in output
    assert {"config.yaml", "environment.json", "metrics.jsonl", "train.log"} <= {path.name for path in folder.iterdir()}
    assert {path.suffix for path in (folder / "pictures").iterdir()} == {".png"}
    assert "3 steps of 16 images" in (folder / "train.log").read_text()


def test_a_finished_run_is_not_trained_again(run: Path, tiny: Path, images: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    result = cjepa("pretrain", tiny, f"data={images}", "--out", run)
    assert result.exit_code == 0, result.output
    assert "continuing after step 3 of 3" in result.output
    assert "verdict: " in result.output
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_written_config_runs_again(run: Path, tmp_path: Path) -> None:
    again = cjepa("pretrain", run / "config.yaml", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    assert read_metrics(tmp_path / "again" / "metrics.jsonl") == read_metrics(run / "metrics.jsonl")


def test_images_without_labels(tmp_path: Path, tiny: Path) -> None:
    flat = write_images(tmp_path / "flat", ("",), 20)
    run = tmp_path / "run"
    result = cjepa("pretrain", tiny, f"data={flat}", "--out", run)
    assert result.exit_code == 0, result.output
    assert "data: 20 images, no labels" in result.output
    assert "best crop_retrieval: at step" in result.output
    assert f"next: cjepa evaluate knn --images LABELLED_FOLDER {run}" in said(result)
    refused = cjepa("evaluate", "knn", run)
    assert refused.exit_code == 2
    assert "the images have no labels to evaluate with; put those of each class into a folder" in said(refused)
    labelled = write_images(tmp_path / "labelled", count=12, seed=5)
    result = cjepa("evaluate", "knn", run, "k=[3]", "--images", labelled)
    assert result.exit_code == 0, result.output
    assert "target encoder, step 1" in result.output


def test_the_default_folder_is_named_after_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    result = cjepa("pretrain", "tiny.yaml", f"data={images}")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "tiny" / "checkpoints" / "step-00000003").is_dir()


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(result: Result, *messages: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert "error: " in result.output
    for message in messages:
        assert message in said(result), result.output


class TestBadImages:
    def test_missing_folder(self, tiny: Path, tmp_path: Path) -> None:
        result = cjepa("pretrain", tiny, f"data={tmp_path / 'none'}", "--out", tmp_path / "run")
        refused(result, "none does not exist", "check the path")

    def test_empty_folder(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        result = cjepa("pretrain", tiny, f"data={tmp_path / 'empty'}", "--out", tmp_path / "run")
        refused(result, "holds no images (it is empty)")

    def test_folder_of_something_else(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("a")
        result = cjepa("pretrain", tiny, f"data={tmp_path / 'texts'}", "--out", tmp_path / "run")
        refused(result, "holds no images (1 file: .txt)")

    def test_a_file(self, tiny: Path, tmp_path: Path) -> None:
        refused(cjepa("pretrain", tiny, f"data={tiny}", "--out", tmp_path / "run"), "is a file; give the folder")

    def test_one_image(self, tiny: Path, tmp_path: Path) -> None:
        write_images(tmp_path / "one", ("",), 1)
        result = cjepa("pretrain", tiny, f"data={tmp_path / 'one'}", "--out", tmp_path / "run")
        refused(result, "only one image is there to train on (0000.png)", "training needs at least 2")

    def test_a_run_folder_among_the_images(self, tiny: Path, tmp_path: Path) -> None:
        """Its pictures would be images from then on: another fingerprint, and a class `runs` to evaluate on."""
        photos = write_images(tmp_path / "photos")
        result = cjepa("pretrain", tiny, f"data={photos}", "--out", photos / "runs" / "mine")
        refused(result, "the run folder", "lies among the images of", "choose a folder elsewhere with --out")

    def test_a_picture_among_the_images(self, run: Path, images: Path) -> None:
        refused(cjepa("visualize", "masks", run, images, "--out", images / "seen"), "lies among the images of")
        assert not (images / "seen").exists()

    def test_batch_larger_than_the_data_set(self, tiny: Path, images: Path, tmp_path: Path) -> None:
        result = cjepa("pretrain", tiny, f"data={images}", "training.batch_size=49", "--out", tmp_path / "run")
        refused(result, "batch size 49 exceeds the 48 training images; use training.batch_size=48 or fewer")

    def test_too_many_unreadable_images(self, tiny: Path, tmp_path: Path) -> None:
        folder = write_images(tmp_path / "bad", ("",), 20)
        for path in sorted(folder.iterdir())[:10]:
            path.write_bytes(b"not an image")
        result = cjepa("pretrain", tiny, f"data={folder}", "training.epochs=2", "--out", tmp_path / "run")
        refused(result, "could not be read, more than data.max_unreadable_share=0.05", "unreadable.jsonl")
        assert read_rows(tmp_path / "run" / "unreadable.jsonl")
        raised = ["training.epochs=2", "data.max_unreadable_share=1", "--allow-change", "data.max_unreadable_share"]
        assert f"{raised[2]} {raised[3]}" in " ".join(result.output.split())
        assert cjepa("pretrain", tiny, f"data={folder}", *raised, "--out", tmp_path / "run").exit_code == 0

    def test_after_a_refusal_the_same_folder_can_be_used(self, tiny: Path, images: Path, tmp_path: Path) -> None:
        refused(cjepa("pretrain", tiny, f"data={tmp_path / 'none'}", "--out", tmp_path / "run"))
        result = cjepa("pretrain", tiny, f"data={images}", "--out", tmp_path / "run")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.encoder.patch_size=32", "data.image_size: a height of 16 is smaller than a patch of 32 pixels"),
        ("data.image_size=[32, 18]", "a width of 18 is not divisible by model.encoder.patch_size=4; use 16 or 20"),
        ("model.encoder.patch_size=8", "masking: on a grid of 2 x 2 patches these scales leave"),
        ("training.epochs=-1", "training.epochs: must be greater than 0, got -1"),
        ("training.epochs=many", 'training.epochs: must be a number, got "many"'),
        ("training.batch_size=1", "training.batch_size: must be at least 2, got 1"),
        ("training.epochs=.inf", "training.epochs: must be a"),
        ("training.precision=float16", "training.precision: is not one of bfloat16, float32, auto"),
        ("training.device=cuda:99", "device cuda:99 cannot be used here"),
        ("training.device=toaster", "device toaster cannot be used here"),
        ("training.optimizer.learning_rate.warmup_epochs=5", "does not end before the training of 3 steps"),
        ("training.momentum.start=1", "with a momentum of 1 the target encoder never leaves its random start"),
        ("model.encoder.heads=5", "width (32) must be divisible by heads (5)"),
        ("model.predictor.heads=3", "model.predictor.heads: 3 heads do not divide the width of 16"),
        ("data.crop_scale=[1.0, 0.5]", "crop_scale: the first value (1.0) must not exceed the second (0.5)"),
        ("data.workers=-1", "data.workers: must be at least 0, got -1"),
        ("masking.targets=1", "compares the target blocks"),
        ("seed=-1", "seed: must be at least 0, got -1"),
        ("seed=", "'seed=' has no value; write seed=null to unset it"),
        ("my images", "'my images' is not of the form key=value; write for example data=my images"),
        ("training.optimizer.betas=[0.9, 1]", "training.optimizer.betas[1]: must be less than 1, got 1"),
        ("training.threads=100000", "training.threads: must be at most 1024"),
        ("model.encoder.mlp_ratio=0.001", "model.encoder.mlp_ratio: must be at least 0.25"),
        ("monitor.evaluations=[{name: kn}]", "monitor.evaluations[0].name: is not one of knn, linear"),
        ("monitor.evaluations=[{k: [5]}]", "monitor.evaluations[0].name: is required; one of knn, linear"),
        ("objective=cjep", "objective: 'cjep' is not one of cjepa,"),
        ("training.lr=1", "unknown key training.lr; did you mean training.optimizer.learning_rate"),
        ("data.image_sze=32", "unknown key data.image_sze; did you mean data.image_size?"),
        ("trainig.epochs=3", "unknown key trainig.epochs; did you mean training.epochs?"),
    ],
)
def test_nonsense_values(change: str, message: str, tiny: Path, images: Path, tmp_path: Path) -> None:
    changes = [change, "objective=cjepa"] if change == "masking.targets=1" else [change]
    refused(cjepa("pretrain", tiny, f"data={images}", *changes, "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("dmeo", "there is no preset or file dmeo; did you mean demo?"),
        ("nothing.yaml", "cannot read nothing.yaml (No such file or directory)"),
        ("broken.yaml", "broken.yaml, line 2"),
        ("typo.yaml", "unknown key trainin; did you mean training?"),
        ("empty.yaml", "empty.yaml is empty"),
        ("incomplete.yaml", "data: is required but missing"),
    ],
)
def test_bad_configurations(origin: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("seed: [1\n")
    Path("typo.yaml").write_text(TINY.replace("training:", "trainin:"))
    Path("empty.yaml").write_text("")
    Path("incomplete.yaml").write_text("seed: 1")
    refused(cjepa("pretrain", origin), message)
    assert not Path("runs").exists()


def test_a_home_folder_that_the_shell_left_alone(tiny: Path, images: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    arguments = ["pretrain", str(tiny), f"data={images}", "data.cache=~/decoded", "--out=~/a run"]
    result = CliRunner().invoke(app, arguments, env=home)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a run" / "config.yaml").exists()
    assert any((tmp_path / "decoded").iterdir())
    assert f"next: cjepa evaluate linear '{tmp_path / 'a run'}'" in said(result)
    report = CliRunner().invoke(app, ["report", "~/a run"], env=home)
    assert report.exit_code == 0, report.output


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_names_that_the_terminal_cannot_show_are_spelt_out(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
    monkeypatch.setattr(cli, "app", lambda: print("caf\udce9 \u4e2d", flush=True))
    cli.main()
    assert shown.getvalue().decode(encoding).rstrip() == "caf\\udce9 " + (
        "\\u4e2d" if encoding == "latin-1" else "\u4e2d"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full stands for a full disk")
def test_output_onto_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "cjepa", "config", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 75
    assert result.stderr == "error: the output could not be written: No space left on device; nothing else is lost\n"


@pytest.mark.parametrize("columns", ["0", "20", "200"])
def test_tables_keep_their_numbers_on_any_terminal(run: Path, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = cjepa("evaluate", "knn", run, "k=[5]")
    assert "untrained encoder" in result.output
    assert "…" not in result.output


class TestRunFolder:
    def test_a_file_in_its_place(self, tiny: Path, images: Path) -> None:
        refused(cjepa("pretrain", tiny, f"data={images}", "--out", tiny), "is a file; choose another path")

    def test_where_nothing_can_be_written(self, tiny: Path, images: Path) -> None:
        refused(
            cjepa("pretrain", tiny, f"data={images}", "--out", tiny / "run"), "cannot be written", "choose a folder"
        )

    def test_a_folder_of_something_else(self, tiny: Path, images: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("precious")
        refused(cjepa("pretrain", tiny, f"data={images}", "--out", tmp_path), "is not empty and not a run folder")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_run_of_another_process(
        self, run: Path, tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs.pretraining, "RunFolder", partial(RunFolder, patience=0.1))
        with FileLock(run / ".lock"):
            refused(cjepa("pretrain", tiny, f"data={images}", "--out", run), "is in use by process")

    def test_another_configuration(self, run: Path, tiny: Path, images: Path) -> None:
        changed = ("training.epochs=2", "objective=ijepa", "data.workers=1")
        result = cjepa("pretrain", tiny, f"data={images}", *changed, "--out", run)
        refused(result, "training.epochs: 1.0 -> 2.0", "objective.name: cjepa-context -> ijepa", "--out")
        assert "workers" not in result.output, "keys of the machine may change"
        assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 3

    def test_other_images(self, run: Path, tiny: Path, images: Path, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(images, tmp_path / "moved"))
        assert cjepa("pretrain", tiny, f"data={moved}", "--out", run).exit_code == 0
        (moved / "a" / "0000.png").unlink()
        refused(cjepa("pretrain", tiny, f"data={moved}", "--out", run), "not those that the run began with")


def damage(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "encoder.safetensors").write_bytes(b"")


def test_damaged_checkpoints_are_named_and_never_started_over(run: Path, tiny: Path, images: Path) -> None:
    damage(run)
    commands = (("pretrain", tiny, f"data={images}", "--out", run), ("evaluate", "knn", run), ("doctor", run))
    for command in commands:
        refused(cjepa(*command), "valid", code=4)


def test_divergence_has_its_own_exit_code(tiny: Path, images: Path, tmp_path: Path) -> None:
    wild = ["training.optimizer.learning_rate.peak=1e30", "training.evaluate_every=50", "training.epochs=20"]
    refused(
        cjepa("pretrain", tiny, f"data={images}", *wild, "--out", tmp_path / "run"),
        "not finite in 10 steps in a row",
        "lower training.optimizer.learning_rate.peak",
        code=3,
    )


def test_unexpected_errors_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(runs, "pretrain", fail)
    result = cjepa("pretrain", tiny, "--out", tmp_path / "run")
    assert isinstance(result.exception, RuntimeError)
    assert "error: " not in result.output


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity")


def test_a_run_without_memory_says_what_to_lower_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path, images: Path
) -> None:
    original = Trainer.take_step

    def fail(self: Trainer, batch: Batch) -> Taken:
        if self.progress.step == 2:
            raise OUT_OF_MEMORY
        return original(self, batch)

    command = ("pretrain", tiny, f"data={images}", "training.checkpoint_every=0.4", "--out", tmp_path / "run")
    monkeypatch.setattr(Trainer, "take_step", fail)
    refused(cjepa(*command), "out of memory (20.00 GiB could not be had); lower training.micro_batch")
    monkeypatch.setattr(Trainer, "take_step", original)
    result = cjepa(*command, "training.micro_batch=8")
    assert result.exit_code == 0, result.output
    assert "continuing after step 2 of 3" in (tmp_path / "run" / "train.log").read_text()


def test_an_evaluation_of_a_run_without_memory_has_a_key_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path, images: Path
) -> None:
    def fail(*_: object) -> None:
        raise OUT_OF_MEMORY

    command = ("pretrain", tiny, f"data={images}", "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "measure", fail)
        refused(cjepa(*command), "lower monitor.batch_size, with --allow-change monitor.batch_size")
    result = cjepa(*command, "monitor.batch_size=16", "--allow-change", "monitor.batch_size")
    assert result.exit_code == 0, result.output


def test_evaluate_without_memory_says_what_to_lower(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(PretrainedEncoder, "forward", fail)
    refused(cjepa("evaluate", "knn", run, "k=[3]"), "out of memory (20.00 GiB could not be had); lower --batch-size")


@pytest.mark.parametrize(
    "command",
    [
        ("visualize", "pca", "RUN", "IMAGES"),
        ("export", "RUN", "--out", "NEW"),
        ("plan", "cifar10-small"),
        ("report", "RUN"),
    ],
)
def test_every_command_says_that_there_is_too_little_memory(
    command: tuple[str, ...], tmp_path: Path, run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(runs, {"export": "export_run", "report": "write_report"}.get(command[0], command[0]), fail)
    places = {"RUN": str(run), "IMAGES": str(images), "NEW": str(tmp_path / "new")}
    refused(
        cjepa(*(places.get(each, each) for each in command)), "out of memory (20.00 GiB could not be had); end what"
    )


def test_ctrl_c_outside_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "pretrain", interrupt)
    result = cjepa("pretrain", tiny, "--out", tmp_path / "run")
    assert result.exit_code == 75
    assert "interrupted; the same command continues" in result.output


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_run_goes_on_by_the_same_command(tiny: Path, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["pretrain", str(tiny), f"data={images}", "training.epochs=40", "--out", str(run)]
    command += ["training.evaluate_every=20", "training.checkpoint_every=20"]
    arguments = [sys.executable, "-m", "cjepa", *command]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for(run / "metrics.jsonl", '"train"', process)
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=120)
    assert process.returncode == 75, messages
    assert "stopped by SIGTERM after step" in messages
    assert "the same command continues the run" in messages
    assert "Traceback" not in messages
    stopped = read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert 0 < stopped < 120
    looked = cjepa("doctor", run)
    assert f"not complete: the same `cjepa pretrain` command continues after step {stopped} of 120" in said(looked)
    result = cjepa(*command)
    assert result.exit_code == 0, result.output
    assert f"continuing after step {stopped} of 120" in result.output
    steps = [row["step"] for row in read_metrics(run / "metrics.jsonl") if row["split"] == "train"]
    assert steps == list(range(1, 121))


# --- evaluate -------------------------------------------------------------------------------------------------------


def test_evaluate_shows_what_there_is_to_beat_and_writes_lines(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cjepa("evaluate", "knn", run, "k=[1, 5]", "centre=false")
    assert result.exit_code == 0, result.output
    for shown in ("raw pixels", "colour statistics", "untrained encoder", "target encoder, step 3", "knn_1", "knn_5"):
        assert shown in result.output
    assert "of 3 classes, 16 x 16 pixels" in said(result)
    rows = read_rows(run / "evaluations.jsonl")
    assert [(row["encoder"], row["step"]) for row in rows] == [
        ("raw pixels", 0),
        ("colour statistics", 0),
        ("untrained", 0),
        ("target", 3),
    ]
    for row in rows:
        assert row["name"] == "knn"
        assert set(row["values"]) == {"knn_1", "knn_5"}
        assert all(0 <= value <= 100 for value in row["values"].values())
        assert row["protocol"]["k"] == [1, 5]
        assert row["protocol"]["train_images"] + row["protocol"]["test_images"] == 48
        assert row["protocol"]["image_size"] == [16, 16]
    monkeypatch.setattr("cjepa.evaluation.task.FeatureTask.measure", None)  # nothing is computed twice
    again = cjepa("evaluate", "knn", run, "k=[1, 5]", "centre=false")
    assert again.exit_code == 0, again.output
    assert again.output.count("target encoder, step 3") == 1
    assert len(read_rows(run / "evaluations.jsonl")) == 4


def test_other_protocols_checkpoints_and_encoders_are_other_lines(run: Path) -> None:
    for command in (
        ("knn", "k=[1]"),
        ("knn", "k=[2]"),
        ("linear",),
        ("knn", "k=[1]", "--encoder", "context"),
        ("knn", "k=[1]", "--checkpoint", "best"),
    ):
        name, *rest = command
        result = cjepa("evaluate", name, run, *rest)
        assert result.exit_code == 0, result.output
    rows = read_rows(run / "evaluations.jsonl")
    best = json.loads((run / "checkpoints" / "step-00000003" / "state.json").read_text())["progress"]["best_step"]
    assert len(rows) == 4 + 4 + 4 + 1 + (best != 3)
    assert [(row["name"], row["encoder"]) for row in rows].count(("knn", "untrained")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kn",), "there is no evaluation kn; it is one of knn, linear"),
        (("knn", "kk=[3]"), "unknown key kk; did you mean k?"),
        (("knn", "k=[0]"), "k[0]: must be greater than 0, got 0"),
        (("segmentation", "data=DIR", "window=48000"), "window: must be at most 8192, got 48000"),
        (("detection", "data=DIR", "size=48000"), "size: must be at most 8192, got 48000"),
        (("video", "data=DIR", "shorter_side=48000"), "shorter_side: must be at most 8192, got 48000"),
        (("knn", "--encoder", "both"), "--encoder both: it is one of target, context"),
        (("knn", "--checkpoint", "first"), "--checkpoint first: it is one of last, best"),
        (("knn", "--images", "nowhere"), "nowhere does not exist"),
        (("linear", "--device", "cuda:99"), "device cuda:99 cannot be used here"),
    ],
)
def test_evaluate_refuses(arguments: tuple[str, ...], message: str, finished: tuple[Path, Result]) -> None:
    name, *rest = arguments
    refused(cjepa("evaluate", name, finished[0], *rest), message)


def test_evaluate_needs_a_run_with_a_checkpoint(tmp_path: Path, run: Path) -> None:
    refused(cjepa("evaluate", "knn", tmp_path), "is not a run folder: it has no config.yaml")
    shutil.rmtree(run / "checkpoints")
    refused(cjepa("evaluate", "knn", run), "has no checkpoint yet")


# --- config, doctor, help -------------------------------------------------------------------------------------------


def test_config_list_names_every_preset() -> None:
    result = cjepa("config", "list")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.output.splitlines() if not line.startswith(" ")]
    assert listed == preset_names()
    assert max(map(len, result.output.splitlines())) <= 80
    for name in preset_names():
        facts = preset_facts(name)
        assert facts.keys() == {"Hardware", "Time", "Result"}
        assert all(" ".join(text.split()) in said(result) for text in facts.values()), name
    assert "Result: 20-NN 54.6, linear 57.0" in said(result)


def test_config_show_is_a_complete_file_that_runs(tmp_path: Path) -> None:
    result = cjepa("config", "show", "demo", "seed=5", "training.epochs=3")
    assert result.exit_code == 0
    shown = parse(RunConfig, read_yaml(result.output, "shown"))
    assert shown == resolve("demo", ["seed=5", "training.epochs=3"])
    file = tmp_path / "shown.yaml"
    file.write_text(result.output)
    assert cjepa("config", "show", file).output == result.output


def test_config_schema_is_json() -> None:
    schema = json.loads(cjepa("config", "schema").output)
    assert set(schema["properties"]) == set(RunConfig.model_fields)


def test_help_documents_every_key_with_its_default() -> None:
    result = cjepa("pretrain", "--help")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    for row in describe_keys(RunConfig):
        value = " (required)" if row.default == "(required)" else f"={row.default}" if row.default else ""
        assert f" {row.key}{value} " in said(result)
    assert "  training.batch_size=256" in lines
    assert "      (whole number >= 2) Images per step over all devices; VICReg's statistics" in lines
    assert "one of auto, bfloat16, float32" in result.output


def test_help_of_evaluate_documents_every_evaluation() -> None:
    result = cjepa("evaluate", "--help")
    assert result.exit_code == 0
    assert {"  k=[10, 20]", "  temperature=0.07", "  validation_share=0.1"} <= set(result.output.splitlines())
    assert max(map(len, result.output.splitlines())) <= 80


def test_doctor_tells_what_is_there() -> None:
    result = cjepa("doctor")
    assert result.exit_code == 0, result.output
    for name in ("python ", "torch ", "CPU ", "GPU ", "bfloat16 ", "extra demo", "extra wandb"):
        assert name in result.output
    assert f"cjepa {__version__}" in said(result)
    assert max(map(len, result.output.splitlines())) <= 80


def test_doctor_knows_what_each_extra_brings() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def brought(extra: str) -> set[str]:
        names = set()
        for line in extras[extra]:
            others = re.fullmatch(r"cjepa\[(.+)\]", line)
            names |= set().union(*map(brought, others[1].split(","))) if others else {line.partition(">=")[0]}
        return names

    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == {
        extra: brought(extra) for extra in extras if extra not in ("docs", "test")
    }


def test_doctor_tells_what_of_an_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cjepa.runs.doctor._version", {"timm": "1.0", "pycocotools": "2.0"}.get)
    monkeypatch.setattr("cjepa.runs.doctor._bfloat16", str)
    rows = dict(environment())
    assert rows["extra timm"] == "timm 1.0"
    assert rows["extra detection"] == 'torchvision not installed; to have it: pip install "cjepa[detection]"'


def test_doctor_tells_which_checkpoint_is_used_and_why_not_another(run: Path) -> None:
    assert "complete: all 3 steps are taken" in said(cjepa("doctor", run))
    (run / "checkpoints" / "step-00000003" / "encoder.safetensors").write_bytes(b"")
    result = cjepa("doctor", run)
    assert result.exit_code == 0, result.output
    assert "step 0: valid <- used next" in said(result)
    assert "step 3: damaged encoder.safetensors has 0 bytes instead of" in said(result)
    assert "continues after step 0 of 3" in said(result)
    shutil.rmtree(run / "checkpoints")
    assert "no checkpoint yet" in said(cjepa("doctor", run))
    refused(cjepa("doctor", run / "pictures"), "is not a run folder")


def test_version() -> None:
    assert cjepa("--version").output == f"cjepa {__version__}\n"


def test_the_module_is_the_command_and_starts_without_torch() -> None:
    script = (
        "import sys, runpy; sys.argv = ['cjepa', '--help']\n"
        "try: runpy.run_module('cjepa', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('loaded', *{name.split('.')[0] for name in sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    shown, loaded = result.stdout.split("loaded ")
    assert all(command in shown for command in ("pretrain", "evaluate", "demo", "doctor", "config"))
    assert set(loaded.split()).isdisjoint({"torch", "numpy", "sklearn", "matplotlib"})
