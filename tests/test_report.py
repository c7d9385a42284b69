"""The report of real, tiny runs: what is kept while they train, what a page is made of, and what the commands say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from cjepa import load_encoder
from cjepa.build import read_config
from cjepa.cli import app
from cjepa.config import RunConfig
from cjepa.config.presets import resolve
from cjepa.errors import DivergedError, InputError, StoppedEarly, StorageError
from cjepa.models.attention import attention_received
from cjepa.runs import card_of, name_runs, pretrain, visualize, write_report
from cjepa.runs import recording as recording_module
from cjepa.runs.recording import _Budget
from cjepa.runs.report import read_run
from cjepa.runs.report_facts import duration, facts_of, gave_up, judgement_of
from cjepa.runs.snapshots import MOST, SnapshotStore, most_similar, thinned
from cjepa.runs.visualizing import read_images
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.metrics import read_metrics
from cjepa.training.rows import RowLog, read_rows
from tests.report_material import samples, snapshot
from tests.tiny_runs import write_config, write_images

EVALUATED = ("training.epochs=4", "training.evaluate_every=1", "training.checkpoint_every=1", "logging.report=true")


def cjepa(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, one of a hostile name, and one image twice."""
    folder = write_images(tmp_path_factory.mktemp("images"), ("a", "b", "<script>alert(1)<!--"))
    shutil.copy(folder / "a" / "0003.png", folder / "b" / "copy.png")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, images: Path) -> RunConfig:
    path = write_config(tmp_path_factory.mktemp("config"))
    return resolve(str(path), [f"data={images}", *EVALUATED])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Path:
    return pretrain(config, tmp_path_factory.mktemp("runs") / "<b>run").folder


@pytest.fixture
def copy(tmp_path: Path, run: Path) -> Path:
    """A run that a test may damage."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are not the test's matter take no time."""
    monkeypatch.setattr(
        "cjepa.runs.report.render", lambda material, *_, live=False: f"{[run.name for run in material]}"
    )


# --- what is kept while a run trains --------------------------------------------------------------------------------


def test_every_evaluation_leaves_a_snapshot_and_a_time(run: Path, config: RunConfig) -> None:
    store = SnapshotStore(run / "report")
    assert store.steps() == [0, 3, 6, 9, 12]
    steps = [row["step"] for row in read_rows(run / "timing.jsonl")]
    assert set(steps) >= {0, 3, 6, 9, 12}
    seconds = [row["seconds"] for row in read_rows(run / "timing.jsonl")]
    assert seconds == sorted(seconds)
    assert "seconds" not in (run / "metrics.jsonl").read_text()
    assert sum(path.stat().st_size for path in (run / "report" / "snapshots").iterdir()) < 500_000
    assert config.grid == (4, 4)


def test_a_snapshot_holds_what_the_checkpoint_makes_of_the_images(run: Path, config: RunConfig) -> None:
    store = SnapshotStore(run / "report")
    found, kept = store.load(12), store.load_samples()
    assert found is not None
    assert kept is not None
    target, context = load_encoder(run), load_encoder(run, encoder="context")
    torch.testing.assert_close(found.patches, target(kept.examples), atol=2e-3, rtol=2e-3)
    pixels = kept.examples.float() / 255 - torch.tensor(config.data.mean).view(3, 1, 1)
    pixels = pixels / torch.tensor(config.data.std).view(3, 1, 1)
    for encoder, received in ((target, found.attention_target), (context, found.attention_context)):
        expected = attention_received(encoder.encoder.with_attention(pixels)[1])
        torch.testing.assert_close(received, expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(received.sum(dim=1), torch.ones(len(received)), atol=1e-2, rtol=0)
    measured = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "evaluation"][-1]
    shares = found.singular_values[found.singular_values > 0].double()
    shares = shares / shares.sum()
    assert float(torch.exp(-(shares * shares.log()).sum())) == pytest.approx(measured["effective_rank"], rel=1e-4)
    assert float(found.deviations.min()) == pytest.approx(measured["std_smallest"], rel=1e-4)
    assert torch.isfinite(found.errors).any()


def test_a_copied_image_is_found_as_a_duplicate(run: Path) -> None:
    found = SnapshotStore(run / "report").load(12)
    assert found is not None
    assert set(found.pairs.names[0]) == {"a/0003.png", "b/copy.png"}
    assert float(found.pairs.similarity[0]) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(found.pairs.images[0, 0], found.pairs.images[0, 1])


def test_the_report_changes_nothing_of_the_run(tmp_path: Path, run: Path, config: RunConfig) -> None:
    logging = config.logging.model_copy(update={"report": False})
    plain = pretrain(config.model_copy(update={"logging": logging}), tmp_path / "plain").folder
    assert (plain / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert not (plain / "report").exists()
    assert not (plain / "timing.jsonl").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("work", ["append", "sync"])
def test_times_that_cannot_be_written_cost_a_warning(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, work: str
) -> None:
    """With training.on_failed_write=stop, as well: nothing that the run continues from is lost."""
    done = getattr(RowLog, work)

    def on_a_full_disk(self: RowLog, *row: object) -> None:
        if self.path.name == "timing.jsonl":
            raise StorageError("no space left")
        done(self, *row)

    monkeypatch.setattr(RowLog, work, on_a_full_disk)
    training = config.training.model_copy(update={"epochs": 1.0})
    assert config.training.on_failed_write == "stop"
    outcome = pretrain(config.model_copy(update={"training": training}), tmp_path / "run")
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps()[-1] == outcome.steps == 3
    assert "timing.jsonl not written (StorageError: no space left); training goes on" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_continued_run_repeats_no_snapshot_and_adds_its_time(
    tmp_path: Path, run: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = tmp_path / "run", recording_module.Recorder.write

    def stop(self, step, split, values):
        write(self, step, split, values)
        if (step, split) == (8, "train"):
            raise StoppedEarly("a power cut")

    monkeypatch.setattr(recording_module.Recorder, "write", stop)
    with pytest.raises(StoppedEarly):
        pretrain(config, folder)
    store = SnapshotStore(folder / "report")
    store.save(snapshot(7))
    store.save(snapshot(11))
    before = read_rows(folder / "timing.jsonl")[-1]
    monkeypatch.setattr(recording_module.Recorder, "write", write)
    pretrain(config, folder)
    assert store.steps() == [0, 3, 6, 9, 12], "those after the checkpoint of step 6 belong to another course"
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    rows = read_rows(folder / "timing.jsonl")
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert rows[-1]["seconds"] > before["seconds"] > 0


def test_a_fault_of_the_report_costs_a_warning_and_not_the_run(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cjepa.runs.snapshots.replace", fail)
    monkeypatch.setattr("cjepa.runs.report.replace", fail)
    outcome = pretrain(config, tmp_path / "run")
    assert outcome.steps == 12
    assert "snapshot not written (OSError: [Errno 28] No space left on device); training goes on" in caplog.text
    assert "report not written (InputError: the report " in caplog.text


def test_snapshots_are_thinned_evenly(tmp_path: Path) -> None:
    assert thinned([0, 1, 2, 3, 10], 4) == [0, 2, 3, 10]
    assert thinned([0, 5], 4) == [0, 5]
    store = SnapshotStore(tmp_path)
    for step in range(0, 50):
        store.save(snapshot(step))
    steps = store.steps()
    assert len(steps) == MOST
    assert steps[0] == 0
    assert steps[-1] == 49
    assert max(np.diff(steps)) <= 4 * min(np.diff(steps))


def test_snapshots_come_back_as_they_were(tmp_path: Path) -> None:
    store, kept = SnapshotStore(tmp_path), snapshot(5)
    store.save(kept)
    found = store.load(5)
    assert found is not None
    for name in ("patches", "embeddings", "attention_target", "singular_values", "deviations", "errors"):
        torch.testing.assert_close(getattr(found, name), getattr(kept, name), atol=1e-3, rtol=1e-3)
    assert found.pairs.names == kept.pairs.names
    assert found.pairs.among == kept.pairs.among
    store.save_samples(samples())
    again = store.load_samples()
    assert again is not None
    assert torch.equal(again.examples, samples().examples)
    assert again.example_names == samples().example_names


def test_a_damaged_snapshot_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SnapshotStore(tmp_path)
    for step in (1, 2, 3):
        store.save(snapshot(step))
    path = tmp_path / "snapshots" / "step-00000002.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert [each.step for each in store.load_all()] == [1, 3]
    assert "the report goes without it" in caplog.text


def test_the_most_similar_pairs_are_those_of_all_pairs() -> None:
    embeddings = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 5
    values, pairs = most_similar(embeddings, 7)
    centred = torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=1)
    expected = (centred @ centred.T)[tuple(torch.triu_indices(40, 40, 1))].sort(descending=True).values[:7]
    torch.testing.assert_close(values, expected)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert most_similar(embeddings[:2], 7)[1].tolist() == [[0, 1]]
    assert most_similar(embeddings[:1], 7)[1].tolist() == []


def test_the_page_is_rewritten_within_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(recording_module, "monotonic", lambda: now[0])
    budget, written = _Budget(0.02), []
    for second in range(0, 2000, 5):
        now[0] = max(now[0], float(second))
        if budget.affordable():
            with budget:
                now[0] += 3.0
            written.append(second)
    assert written[0] == 0, "a page that a browser can be left open on is there from the start"
    assert 3.0 * len(written) <= 0.02 * 2000
    assert len(written) == 13
    assert not _Budget(0.0).affordable()


# --- the page -------------------------------------------------------------------------------------------------------


def test_a_run_is_followed_while_it_trains_and_left_alone_afterwards(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    write = recording_module.write_live_report

    def look(folder: Path) -> None:
        write(folder)
        seen.append((folder / "report" / "index.html").read_text())

    monkeypatch.setattr(recording_module, "write_live_report", look)
    monkeypatch.setattr("cjepa.runs.recording._Budget.affordable", lambda budget: not seen)
    pretrain(config, tmp_path / "run")
    assert len(seen) == 1
    assert '<meta http-equiv="refresh" content="30">' in seen[0]
    assert '<span class="live">Training: </span>0 of 12 steps were taken when this page was written.' in seen[0]
    left = (tmp_path / "run" / "report" / "index.html").read_text()
    assert 'http-equiv="refresh"' not in left
    assert "reads itself again" not in left
    assert "Training:" not in left, "whether it trains, is stopped or was killed, nobody says any more"
    assert "0 of 12 steps were taken when this page was written." in left


def test_a_report_is_one_file_with_the_names_escaped(run: Path, tmp_path: Path) -> None:
    shown = cjepa("report", run, "--out", tmp_path / "page.html")
    assert (shown.exit_code, shown.output) == (0, f"report: {tmp_path / 'page.html'}\n")
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)&lt;!--" in text
    assert "<b>run" not in text
    assert len(text) < 15_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.usefixtures("quick")
def test_a_comparison_leaves_the_page_of_the_first_run_alone(run: Path, copy: Path) -> None:
    write_report({"copy": copy})
    shown = cjepa("report", copy, run)
    path = copy / "report" / "comparison.html"
    assert (shown.exit_code, shown.output) == (0, f"report: {path}\n")
    assert path.read_text() == "['copy', '<b>run']"
    assert (copy / "report" / "index.html").read_text() == "['copy']"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    for arguments in ([tmp_path / "nothing"], [run, tmp_path], [run, run]):
        shown = cjepa("report", *arguments)
        assert shown.exit_code == 2, shown.output
        assert "error: " in shown.output
    assert not (tmp_path / "nothing").exists()


@pytest.mark.usefixtures("quick")
def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another place with --out"):
        write_report({"run": run}, tmp_path / "file" / "page.html")


def test_a_run_of_an_earlier_version_is_drawn_from_its_checkpoints(copy: Path) -> None:
    shutil.rmtree(copy / "report")
    (copy / "timing.jsonl").unlink()
    data = json.loads((copy / "data.json").read_text())
    (copy / "data.json").write_text(json.dumps({name: data[name] for name in ("images", "classes", "steps")}))
    found = read_run(copy, "run")
    assert [each.step for each in found.snapshots] == [0, 12]
    assert found.clock is None
    assert (found.quality, found.judgement.state) == ("knn_20_centred", "not learning")
    assert any("no hours" in note for note in found.notes)


def test_a_run_that_crashed_at_once_has_a_page(copy: Path) -> None:
    for name in ("report", "checkpoints"):
        shutil.rmtree(copy / name)
    for name in ("metrics.jsonl", "timing.jsonl", "environment.json", "data.json"):
        (copy / name).unlink()
    path = write_report({"crashed": copy})
    text = path.read_text()
    assert "there are no metrics yet" in text
    assert "has no checkpoint yet" in text
    assert "nothing was measured yet" in text


def test_a_run_whose_images_are_gone_keeps_its_pictures(copy: Path) -> None:
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(read_config(copy).data.source.path), "/nowhere"))
    found = read_run(copy, "run")
    assert len(found.snapshots) == 5
    shutil.rmtree(copy / "report")
    without = read_run(copy, "run")
    assert without.snapshots == []
    assert any("/nowhere does not exist" in note for note in without.notes)


def test_unlabelled_images_have_a_page(tmp_path: Path, config: RunConfig) -> None:
    folder = write_images(tmp_path / "images", classes=("",), count=20)
    source = config.data.source.model_copy(update={"path": folder})
    training = config.training.model_copy(update={"epochs": 1.0})
    changed = config.model_copy(
        update={"data": config.data.model_copy(update={"source": source}), "training": training}
    )
    run = pretrain(changed, tmp_path / "run").folder
    text = write_report({"run": run}).read_text()
    assert "crop_retrieval" in text
    assert "no labels" in text


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert name_runs([one]) == {"run": one}
    assert name_runs([one, other]) == {"a/run": one, "b/run": other}
    with pytest.raises(InputError, match="given twice"):
        name_runs([one, tmp_path / "b" / ".." / "a" / "run"])


@pytest.mark.parametrize(("attention", "text"), [("full", ""), ("one_way", ", one-way attention")])
def test_a_predictor_that_is_not_the_paper_s_is_called_so(attention: str, text: str) -> None:
    config = resolve("demo", [f"model.predictor.attention={attention}"])
    facts = dict(facts_of(Path("run"), config, {}, {}, 0, None))
    assert facts["predictor of patches"] == f"width 96, 2 blocks{text}"


def test_a_run_that_diverged_is_called_so() -> None:
    rows = [{"step": 4, "split": "train", "loss": float("nan")}]
    found = judgement_of(resolve("demo"), rows, "knn_20_centred", 10, 10)
    assert found.state == "diverged"
    assert "training.optimizer.clip_gradient=1" in found.advice
    assert judgement_of(resolve("demo"), [], "knn_20_centred", 10, 10).state == "too early"


def test_a_run_that_diverged_is_not_told_what_it_had() -> None:
    rows = [{"step": 4, "split": "train", "loss": float("nan")}]
    had = ["training.optimizer.clip_gradient=0.5", "training.precision=float32"]
    advice = judgement_of(resolve("demo", had), rows, "knn_20_centred", 10, 10).advice
    assert advice == "In a new run lower training.optimizer.learning_rate.peak."


def test_a_run_that_gave_up_between_two_rows_is_called_so(copy: Path) -> None:
    """With training.log_every above training.most_skipped no row has the loss that ended the run."""
    (copy / "diverged" / "step-00000009").mkdir(parents=True)
    assert read_run(copy, "run").judgement.state != "diverged", "its checkpoint of step 12 is later"
    shutil.rmtree(copy / "checkpoints" / "step-00000012")
    judgement = read_run(copy, "run").judgement
    assert judgement.state == "diverged"
    assert judgement.evidence.startswith("the run gave up at step 9")
    assert read_run(copy, "run", live=True).judgement.state != "diverged", "it goes on from the checkpoint before"
    assert gave_up([9], [6], 19, 10) == 9
    assert gave_up([9], [6], 20, 10) is None, "it got past it later"
    assert gave_up([], [6], 20, 10) is None


def test_the_page_of_a_run_that_gave_up_says_so(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(self, step, split, values):
        if split == "train":
            CheckpointStore(self.run / "diverged").save(step, {}, {})
            raise DivergedError("the loss was not finite")

    monkeypatch.setattr(recording_module.Recorder, "write", give_up)
    with pytest.raises(DivergedError):
        pretrain(config, tmp_path / "run")
    assert "<strong>diverged</strong>: the run gave up at step 1" in (tmp_path / "run/report/index.html").read_text()


def test_without_what_was_measured_before_training_nothing_is_judged(copy: Path) -> None:
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(line for line in lines if '"step": 0,' not in line))
    judgement = read_run(copy, "run").judgement
    assert (judgement.state, judgement.advice) == ("unknown", "")
    assert "<strong>unknown</strong>" in write_report({"run": copy}).read_text()
    assert card_of(copy).health == "Not recorded by the version that trained it."
    assert not [table for table in card_of(copy).results if table.title == "Measured while training"]


def test_seeds_of_other_images_are_no_seeds_of_the_same_run(run: Path, copy: Path) -> None:
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("seed: 0", "seed: 1").replace("path: /", "path: /elsewhere/"))
    assert read_run(copy, "copy").identity == read_run(run, "run").identity
    data = json.loads((copy / "data.json").read_text())
    (copy / "data.json").write_text(json.dumps(data | {"fingerprint": "other images"}))
    assert read_run(copy, "copy").identity != read_run(run, "run").identity


def test_values_of_an_earlier_checkpoint_are_called_so(copy: Path) -> None:
    row = {"name": "knn", "encoder": "target", "digest": "", "protocol": {"test_images": 9}, "values": {"knn_20": 5.0}}
    RowLog(copy / "evaluations.jsonl").append({"step": 6, **row})
    told = "cjepa evaluate saw the encoder after step 6; the last checkpoint is of step 12"
    assert told in read_run(copy, "run").notes
    RowLog(copy / "evaluations.jsonl").append({"step": 12, **row})
    assert told not in read_run(copy, "run").notes


def test_only_shares_of_images_have_the_uncertainty_of_images(copy: Path) -> None:
    protocol = {"test_images": 9, "image_size": [16, 16]}
    for name, own in (("knn", protocol | {"evaluation_crop": 0.9}), ("segmentation", protocol)):
        row = {"name": name, "encoder": "target", "protocol": own, "values": {"value": 5.0}}
        RowLog(copy / "evaluations.jsonl").append({"step": 12, **row})
    assert [each.test_images for each in read_run(copy, "run").evaluations] == [9, 0]


def test_a_run_that_goes_on_with_other_images_has_their_pictures(
    copy: Path, config: RunConfig, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Embeddings of new images beside pictures of the old ones would show neighbours that are none."""
    other = Path(shutil.copytree(images, tmp_path / "other"))
    for path in (other / "a").iterdir():
        path.rename(path.with_name(f"new-{path.name}"))
    longer = config.training.model_copy(update={"epochs": 5.0})
    source = config.data.source.model_copy(update={"path": other})
    data = config.data.model_copy(update={"source": source})
    changed = config.model_copy(update={"training": longer, "data": data})
    pretrain(changed, copy, ["training.epochs", "images"])
    store = SnapshotStore(copy / "report")
    found = store.load_samples()
    assert found is not None
    assert any("new-" in name for name in found.example_names)
    assert store.steps() == [15]
    assert "its pictures begin anew" in caplog.text


def test_a_finished_run_that_is_called_again_still_says_where_it_was_trained(copy: Path, config: RunConfig) -> None:
    (copy / "environment.json").write_text('{"python": "of the cluster"}')
    pretrain(config, copy)
    assert json.loads((copy / "environment.json").read_text()) == {"python": "of the cluster"}
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 5.0})})
    pretrain(longer, copy, ["training.epochs"])
    assert json.loads((copy / "environment.json").read_text())["python"] != "of the cluster"


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (200.0, "3 min 20 s"), (14700.0, "4 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- single pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", ["attention", "pca", "masks", "neighbours"])
def test_pictures_are_written_as_png_and_svg(picture: str, run: Path, images: Path, tmp_path: Path) -> None:
    shown = cjepa("visualize", picture, run, images / "a", "--out", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert shown.output.split()[-2:] == [str(tmp_path / f"{picture}.png"), str(tmp_path / f"{picture}.svg")]
    with Image.open(tmp_path / f"{picture}.png") as drawn:
        assert drawn.width == 1400
        assert np.asarray(drawn.convert("L")).std() > 1
    assert (tmp_path / f"{picture}.svg").read_text().count("<image") >= 2


def test_what_cannot_be_drawn_is_refused(run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_text("no image")
    for arguments, message in (
        (("nothing", run, images), "it is one of attention, pca, masks, neighbours"),
        (("pca", tmp_path, images), "is not a run folder"),
        (("pca", run, tmp_path / "absent"), "does not exist"),
        (("pca", run, tmp_path / "empty"), "holds no image that can be read"),
        (("pca", run, tmp_path / "broken.png"), "holds no image that can be read"),
        (("pca", run, images, "--checkpoint", "first"), "it is one of last, best"),
    ):
        shown = cjepa("visualize", *arguments, "--out", tmp_path / "out")
        assert shown.exit_code == 2
        assert message in " ".join(shown.output.split())


def test_a_single_file_is_drawn(run: Path, images: Path, tmp_path: Path) -> None:
    paths = visualize("masks", run, images / "a" / "0003.png", tmp_path)
    assert [path.name for path in paths] == ["masks.png", "masks.svg"]


def test_of_a_folder_only_what_a_training_would_take_is_drawn(run: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(images / "a", folder / "a")
    for name in ("@eaDir/0000.png", "a/._0000.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (48, 48), (255, 0, 0)).save(folder / name)
    config = read_config(run)
    assert torch.equal(read_images(config, folder), read_images(config, images / "a"))
