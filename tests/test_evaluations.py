"""Every evaluation through `evaluate_run`: its line beside the untrained encoder's, the cache, and resuming."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cjepa.config.presets import resolve
from cjepa.errors import StoppedEarly
from cjepa.evaluation import Evaluation
from cjepa.evaluation.attentive import AttentiveConfig
from cjepa.evaluation.clevr import CountingConfig, DistanceConfig
from cjepa.evaluation.detection import DetectionConfig
from cjepa.evaluation.finetune import FinetuneConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.evaluation.linear_sgd import LinearSgdConfig
from cjepa.evaluation.lowshot import LowshotConfig
from cjepa.evaluation.patches import PatchRetrievalConfig
from cjepa.evaluation.retrieval import RetrievalConfig
from cjepa.evaluation.segmentation import SegmentationConfig
from cjepa.evaluation.video import VideoConfig
from cjepa.runs import evaluate_run, pretrain
from cjepa.runs.keeping import UNFINISHED
from cjepa.training.interruption import Interruption
from cjepa.training.rows import read_rows
from tests.evaluation import test_clevr, test_detection, test_segmentation, test_video
from tests.tiny_runs import write_config, write_images

PIXELS = ["raw pixels", "colour statistics"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = resolve(str(write_config(folder)), [f"data={write_images(folder / 'images')}"])
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
        patch.setattr(Interruption, "__enter__", asked)
        with pytest.raises(StoppedEarly, match="stopped by SIGTERM after step 1 of 4; the same command continues"):
            evaluate_run(run, [evaluation], device="cpu")
    assert len(list((run / UNFINISHED).iterdir())) == 1
    continued = evaluate_run(run, [evaluation], device="cpu")
    assert not (run / UNFINISHED).exists()
    again = SegmentationConfig(data=data / "scenes", epochs=4, batch_size=6, mirror=False, stride=0.66666666)
    assert [result.values for result in evaluate_run(run, [again], device="cpu")] == [
        result.values for result in continued
    ]


def asked(interruption: Interruption) -> Interruption:
    """As if the signal had come before the first step."""
    interruption.requested = "SIGTERM"
    return interruption
