"""Every evaluation through `evaluate_run`: its line beside the untrained encoder's, the cache, and resuming."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cjepa.build import untrained_encoder
from cjepa.config.presets import resolve
from cjepa.data.source import _name_share
from cjepa.errors import InputError, StoppedEarly
from cjepa.evaluation import VERSIONS, Evaluation, fitting
from cjepa.evaluation.attentive import AttentiveConfig
from cjepa.evaluation.clevr import CountingConfig, DistanceConfig
from cjepa.evaluation.detection import DetectionConfig
from cjepa.evaluation.finetune import FinetuneConfig
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.evaluation.linear_sgd import LinearSgdConfig
from cjepa.evaluation.lowshot import LowshotConfig
from cjepa.evaluation.patches import PatchRetrievalConfig
from cjepa.evaluation.retrieval import RetrievalConfig
from cjepa.evaluation.segmentation import SegmentationConfig
from cjepa.evaluation.video import VideoConfig
from cjepa.export import export_encoder
from cjepa.export.safetensors_folder import SafetensorsConfig
from cjepa.models.vit import EncoderConfig, VisionTransformer
from cjepa.models.weights import Preparation
from cjepa.runs import card_of, evaluate_run, export_run, pretrain, write_report
from cjepa.runs.keeping import UNFINISHED
from cjepa.training.progress import Progress
from cjepa.training.rows import read_rows
from tests.evaluation import test_clevr, test_detection, test_segmentation, test_video
from tests.tiny_runs import write_config, write_images

PIXELS = ["raw pixels", "colour statistics"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = resolve(str(write_config(folder)), [f"data={images}"])
    pretrain(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with masks, CLEVR, COCO and DAVIS in miniature."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 6), ("test", 2)):
        test_segmentation.write_scenes(root / "scenes", split, count, 0)
    for split in ("train", "val"):
        test_clevr.write_scenes(root / "clevr", split, 48, 0)
        test_detection.write_shapes(root / "coco", split, 2, 0)
    test_video.write_video(root / "davis", "street", frames=4)
    return root


def cases(data: Path) -> list[tuple[Evaluation, list[str]]]:
    """Each evaluation at its shortest, and what it has to beat besides the untrained encoder."""
    probe = LinearConfig(inverse_regularisation=(0.1,))
    return [
        (LowshotConfig(shares=(), per_class=(1,), draws=2), PIXELS),
        (RetrievalConfig(), PIXELS),
        (LinearSgdConfig(optimizer="sgd", epochs=1, batch_size=16, rates=(0.1,)), []),
        (AttentiveConfig(epochs=1, batch_size=16), []),
        (FinetuneConfig(epochs=1, batch_size=16), []),
        (SegmentationConfig(data=data / "scenes", epochs=1), []),
        (PatchRetrievalConfig(data=data / "scenes"), []),
        (CountingConfig(data=data / "clevr", probe=probe), PIXELS),
        (DistanceConfig(data=data / "clevr", probe=probe), PIXELS),
        (DetectionConfig(data=data / "coco", epochs=0.5, batch_size=1, channels=8), []),
        (VideoConfig(data=data / "davis", shorter_side=None), ["first mask kept"]),
    ]


def test_every_evaluation_is_tried(data: Path) -> None:
    names = {evaluation.name for evaluation, _ in cases(data)}
    assert names | {"knn", "linear"} == {part.model_fields["name"].default for part in Evaluation.__args__}


@pytest.mark.parametrize("number", range(11))
def test_a_line_beside_the_untrained_encoder_s_and_never_twice(run: Path, data: Path, number: int) -> None:
    evaluation, baselines = cases(data)[number]
    results = evaluate_run(run, [evaluation], device="cpu")
    assert [result.encoder for result in results] == [*baselines, "untrained", "target"]
    assert len({str(result.protocol) for result in results}) == 1
    protocol = results[0].protocol
    assert str(data) not in str(protocol), "where images lie is a matter of the machine"
    assert {"images", "precision"} <= protocol.keys()
    for result in results:
        assert result.values
        assert np.isfinite(list(result.values.values())).all()
    rows = [row for row in read_rows(run / "evaluations.jsonl") if row["name"] == evaluation.name]
    assert [row["values"] for row in rows] == [result.values for result in results]
    assert not (run / UNFINISHED).exists()
    assert evaluate_run(run, [evaluation], device="cpu") == results
    assert len(rows) == len([row for row in read_rows(run / "evaluations.jsonl") if row["name"] == evaluation.name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("number", range(11))
def test_a_gpu_gives_values_too(run: Path, data: Path, number: int, tmp_path: Path) -> None:
    evaluation, _ = cases(data)[number]
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations.jsonl"))
    (result,) = evaluate_run(copied, [evaluation], device="cuda", comparisons=False)
    assert np.isfinite(list(result.values.values())).all()


def test_stopped_by_a_signal_the_same_call_continues(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = SegmentationConfig(data=data / "scenes", epochs=4, batch_size=6)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_take_step", interrupted(fitting._take_step))
        with pytest.raises(StoppedEarly, match="stopped by SIGTERM after step 1 of 4; the same command continues"):
            evaluate_run(run, [evaluation], device="cpu")
    assert len(list((run / UNFINISHED).iterdir())) == 1
    continued = evaluate_run(run, [evaluation], device="cpu")
    assert not (run / UNFINISHED).exists()
    again = SegmentationConfig(data=data / "scenes", epochs=4, batch_size=6, mirror=False, stride=0.66666666)
    assert [result.values for result in evaluate_run(run, [again], device="cpu")] == [
        result.values for result in continued
    ]


def interrupted(function: Callable[..., Any], when: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
    """The function, which gets a signal when it is first called; a second one would end the process at once."""
    signals = [signal.SIGTERM]

    def called(*arguments: Any, **options: Any) -> Any:
        if signals and when(*arguments):
            signal.raise_signal(signals.pop())
        return function(*arguments, **options)

    return called


@pytest.mark.parametrize("number", range(12))
def test_a_signal_ends_every_evaluation_at_its_first_forward_pass(
    run: Path, data: Path, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluation = [KnnConfig(k=(3,)), *(each for each, _ in cases(data))][number]
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations.jsonl"))
    monkeypatch.setattr(VisionTransformer, "embed_patches", interrupted(VisionTransformer.embed_patches))
    with pytest.raises(StoppedEarly, match=r"^stopped by SIGTERM.*; the same command continues$"):
        evaluate_run(copied, [evaluation], device="cpu", comparisons=False)
    assert not (copied / "evaluations.jsonl").exists()


@pytest.mark.parametrize("number", range(2, 12))
def test_and_when_it_tests(run: Path, data: Path, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evaluation, _ = cases(data)[number - 1]
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations.jsonl"))
    testing = lambda line, *_: not line._description.endswith(": step")  # noqa: E731
    monkeypatch.setattr(Progress, "update", interrupted(Progress.update, testing))
    with pytest.raises(StoppedEarly, match=r"^stopped by SIGTERM; the same command continues$"):
        evaluate_run(copied, [evaluation], device="cpu", comparisons=False)


def test_and_while_it_classifies_or_opens_the_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("cjepa.evaluation.knn_accuracy", "cjepa.runs.labelled_images.open_source"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupted(lambda *_: None))
            with pytest.raises(StoppedEarly, match=r"^stopped by SIGTERM; the same command continues$"):
                evaluate_run(run, [KnnConfig(k=(2,))], device="cpu")


# --- whose results they are -----------------------------------------------------------------------------------------


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    export_run(run, SafetensorsConfig(), tmp_path / "exported")
    return tmp_path / "exported"


def change(weights: Path) -> None:
    """Put other weights into the same place."""
    file = weights / "model.safetensors"
    tensors = load_file(file)
    tensors["norm.weight"] = torch.zeros_like(tensors["norm.weight"])  # every image gets the same features
    save_file(tensors, file, {"format": "pt"})


def test_other_weights_in_the_same_place_have_results_of_their_own(run: Path, images: Path, exported: Path) -> None:
    first = evaluate_run(exported, [KnnConfig(k=(3,))], images=images, device="cpu")
    copy = shutil.copytree(exported, exported.with_name("copy"))
    change(exported)
    second = evaluate_run(exported, [KnnConfig(k=(3,))], images=images, device="cpu")
    assert second[:3] == first[:3], "pixels and the untrained encoder are the same"
    assert second[3].digest != first[3].digest
    assert second[3].values != first[3].values
    assert len(read_rows(exported / "evaluations.jsonl")) == 5
    (copy / "model.safetensors").replace(exported / "model.safetensors")
    assert evaluate_run(exported, [KnnConfig(k=(3,))], images=images, device="cpu") == first
    [table] = card_of(exported).results
    assert [row[0] for row in table.rows] == ["raw pixels", "colour statistics", "untrained encoder", "target encoder"]
    assert table.rows[3][1] == f"{first[3].values['knn_3']:.1f}", "of the weights that are there"


def test_weights_need_no_labelled_images_where_the_evaluation_names_its_own(exported: Path, data: Path) -> None:
    evaluation = PatchRetrievalConfig(data=data / "scenes")
    assert [each.encoder for each in evaluate_run(exported, [evaluation], device="cpu")] == ["untrained", "target"]
    with pytest.raises(InputError, match=r"weights do not say which images .* --images"):
        evaluate_run(exported, [KnnConfig(k=(3,))], device="cpu")


def test_normalised_otherwise_it_is_another_encoder(images: Path, exported: Path) -> None:
    first = evaluate_run(exported, [KnnConfig(k=(3,))], images=images, device="cpu", comparisons=False)
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"mean": [0.1, 0.2, 0.3]}))
    second = evaluate_run(exported, [KnnConfig(k=(3,))], images=images, device="cpu", comparisons=False)
    assert second[0].digest != first[0].digest
    assert second[0].protocol == first[0].protocol


def test_lines_that_do_not_say_whose_they_are_are_no_answer(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations.jsonl"))
    results = evaluate_run(copied, [KnnConfig(k=(3,))], device="cpu", comparisons=False)
    (row,) = read_rows(copied / "evaluations.jsonl")
    row.pop("digest")
    row["values"] = {"knn_3": 99.0}
    (copied / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    assert not [table for table in card_of(copied).results if table.title.startswith("knn")]
    assert evaluate_run(copied, [KnnConfig(k=(3,))], device="cpu", comparisons=False) == results
    assert len(read_rows(copied / "evaluations.jsonl")) == 2
    assert "99.0" not in write_report({"run": copied}).read_text()


def test_lines_of_before_an_evaluation_s_values_changed_are_no_answer(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations.jsonl"))
    [before] = evaluate_run(copied, [KnnConfig(k=(3,))], device="cpu", comparisons=False)
    assert "version" not in before.protocol
    monkeypatch.setattr("cjepa.evaluation.VERSIONS", {"knn": 2})
    [after] = evaluate_run(copied, [KnnConfig(k=(3,))], device="cpu", comparisons=False)
    assert after.protocol == before.protocol | {"version": 2}
    assert [row["protocol"] for row in read_rows(copied / "evaluations.jsonl")] == [before.protocol, after.protocol]
    assert evaluate_run(copied, [KnnConfig(k=(3,))], device="cpu", comparisons=False) == [after]
    monkeypatch.undo()
    assert evaluate_run(copied, [KnnConfig(k=(3,))], device="cpu", comparisons=False) == [before]


def test_versions_are_of_evaluations() -> None:
    assert VERSIONS.keys() <= {part.model_fields["name"].default for part in Evaluation.__args__}
    assert min(VERSIONS.values()) > 1, "the first is not written"


def test_a_head_is_not_continued_on_other_weights(
    images: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = LinearSgdConfig(optimizer="sgd", epochs=4, batch_size=16, rates=(0.1,))
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_take_step", interrupted(fitting._take_step))
        with pytest.raises(StoppedEarly, match="after step 1 of"):
            evaluate_run(exported, [evaluation], images=images, device="cpu", comparisons=False)
    change(exported)
    seen: list[int] = []
    monkeypatch.setattr(fitting, "_restore", lambda plan, work: seen.append(restore(plan, work)) or seen[-1])
    evaluate_run(exported, [evaluation], images=images, device="cpu", comparisons=False)
    assert seen == [0]


restore = fitting._restore


# --- weights from elsewhere -----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_costs_no_values(
    data: Path, images: Path, exported: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SAVE_SECONDS", -1.0)
    (exported / UNFINISHED).write_text("a file where a folder should be")
    probe = LinearSgdConfig(optimizer="sgd", epochs=1, batch_size=16, rates=(0.1,))
    evaluations = [VideoConfig(data=data / "davis", shorter_side=None), probe]
    results = evaluate_run(exported, evaluations, images=images, device="cpu", comparisons=False)
    assert all(result.values for result in results)
    assert caplog.text.count("what is done so far cannot be kept") == 2, "once for each evaluation"


def test_a_grid_that_is_too_small_for_masks_is_evaluated(run: Path, images: Path, tmp_path: Path) -> None:
    config = EncoderConfig(width=32, depth=1, heads=2, patch_size=8)
    encoder = untrained_encoder(config, Preparation((16, 16)), 3)
    export_encoder(SafetensorsConfig(), encoder, tmp_path / "small", lambda _: "")
    results = evaluate_run(tmp_path / "small", [KnnConfig(k=(3,))], images=images, device="cpu")
    assert [result.encoder for result in results] == [*PIXELS, "untrained", "target"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.5, 1.5, 0.5]}, r"mean\[1\]: must be at most 1"),
        ({"image_size": [8196, 16]}, "must be at most 8192"),
    ],
)
def test_a_preparation_that_cannot_be_is_refused(
    images: Path, exported: Path, change: dict[str, object], message: str
) -> None:
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        evaluate_run(exported, [KnnConfig(k=(3,))], images=images, device="cpu")


# --- classes without training images --------------------------------------------------------------------------------


def long_tailed(folder: Path) -> Path:
    """Two classes, and one whose only image is held out to test on."""
    write_images(folder, classes=("a", "b"))
    name = next(f"{number}.png" for number in range(100) if _name_share(f"c/{number}.png") < 0.2)
    (folder / "c").mkdir()
    shutil.copy(next((folder / "a").iterdir()), folder / "c" / name)
    return folder


def test_classes_that_only_the_hold_out_has_are_left_out_of_it(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = long_tailed(tmp_path / "images")
    [result] = evaluate_run(run, [KnnConfig(k=(3,))], images=folder, device="cpu", comparisons=False)
    assert result.protocol["train_images"] + result.protocol["test_images"] == 32
    assert "1 of 3 classes are not tested (c): all of their images, 1 in all, are among" in caplog.text


@pytest.mark.parametrize(
    "evaluation",
    [KnnConfig(k=(3,)), LinearSgdConfig(optimizer="sgd"), AttentiveConfig(), FinetuneConfig()],
    ids=lambda evaluation: evaluation.name,
)
def test_but_those_of_a_test_folder_are_refused_before_anything_is_computed(
    run: Path, tmp_path: Path, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "train", classes=("a", "b"), count=4)
    write_images(tmp_path / "test", classes=("a", "c"), count=4)
    monkeypatch.setattr(VisionTransformer, "embed_patches", None)
    with pytest.raises(InputError, match=r"no training image for 1 of the classes of the test images \(c\)"):
        evaluate_run(run, [evaluation], images=tmp_path, device="cpu")


def test_images_too_few_to_hold_any_out_are_said_to_be_few(run: Path, tmp_path: Path) -> None:
    for label in "ab":
        name = next(f"{number}.png" for number in range(100) if _name_share(f"{label}/{number}.png") >= 0.2)
        one = write_images(tmp_path / "one", classes=(label,), count=1) / label
        (tmp_path / "images" / label).mkdir(parents=True)
        next(one.iterdir()).rename(tmp_path / "images" / label / name)
    message = r"the 2 labelled images are too few to hold about a fifth of them out .* more images .* train/CLASS/"
    with pytest.raises(InputError, match=message):
        evaluate_run(run, [KnnConfig(k=(3,))], images=tmp_path / "images", device="cpu")


def test_images_without_labels_are_said_to_have_none(run: Path, tmp_path: Path) -> None:
    for name in ("", "a"):
        folder = write_images(tmp_path / f"images{name}", classes=(name,), count=4)
        with pytest.raises(InputError, match="the images have no labels to evaluate with"):
            evaluate_run(run, [KnnConfig(k=(3,))], images=folder, device="cpu")


def test_a_hold_out_that_shares_no_class_is_refused(run: Path, tmp_path: Path) -> None:
    for label, held_out in (("a", True), ("b", False), ("c", False)):
        name = next(f"{n}.png" for n in range(100) if (_name_share(f"{label}/{n}.png") < 0.2) == held_out)
        one = write_images(tmp_path / "one", classes=(label,), count=1) / label
        (tmp_path / "images" / label).mkdir(parents=True)
        next(one.iterdir()).rename(tmp_path / "images" / label / name)
    with pytest.raises(InputError, match="no class has an image to train on besides the one held out"):
        evaluate_run(run, [KnnConfig(k=(3,))], images=tmp_path / "images", device="cpu")


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (LowshotConfig(per_class=(1, 2)), "per_class: class a has fewer than 2 training images; ask for fewer"),
        (RetrievalConfig(k=(1, 3)), "k: there are only 2 training images"),
        (LinearConfig(), "every class has a single training image"),
    ],
    ids=lambda part: getattr(part, "name", None),
)
def test_keys_that_the_labels_cannot_satisfy_are_refused_before_an_image_is_read(
    run: Path, tmp_path: Path, evaluation: Evaluation, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / split, classes=("a", "b"), count=1)
    monkeypatch.setattr("cjepa.evaluation.labelled.EvaluationImages", None)
    with pytest.raises(InputError, match=message):
        evaluate_run(run, [evaluation], images=tmp_path, device="cpu")
