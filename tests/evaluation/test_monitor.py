"""The cheap evaluation during training: which images it takes, and what it does where labels are missing or rare."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cjepa.build import build_model, build_stream
from cjepa.config import RunConfig, dump_yaml, load_yaml, parse
from cjepa.config.presets import resolve
from cjepa.data import Splits
from cjepa.errors import InputError
from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.linear import LinearConfig, linear_accuracy
from cjepa.evaluation.monitor import FEWEST, PROBE, Monitor, MonitorConfig
from cjepa.evaluation.retrieval import RetrievalConfig
from cjepa.training.health import COLLAPSED_RANK
from tests.training.conftest import Textures, tiny_config

CPU = torch.device("cpu")


def monitor(train: Textures, test: Textures | None, **limits: object) -> Monitor:
    config = tiny_config(monitor=limits) if limits else tiny_config()
    splits = Splits(train, test)
    return Monitor(config.monitor, config.data, splits, build_stream(config, splits), CPU, "float32")


def unlabelled(per_class: int, classes: int = 4) -> Textures:
    images = Textures(per_class, classes)
    images.labels = np.full(len(images), -1)
    images.classes = ()
    return images


def test_the_same_model_gives_the_same_values() -> None:
    model = build_model(tiny_config())
    one = monitor(Textures(32), Textures(16, seed=1)).measure(model)
    assert one == monitor(Textures(32), Textures(16, seed=1)).measure(model)
    assert {
        "effective_rank",
        "std_smallest",
        "std_mean",
        "spread",
        "explained_variance",
        "knn_20_centred",
    } <= one.keys()


def test_measuring_leaves_the_model_and_the_random_state_alone() -> None:
    model = build_model(tiny_config())
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    monitor(Textures(32), Textures(16, seed=1)).measure(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("labelled", [True, False])
def test_images_are_read_once_where_they_fit(monkeypatch: pytest.MonkeyPatch, labelled: bool) -> None:
    loaded: list[int] = []
    original = Textures.load
    monkeypatch.setattr(Textures, "load", lambda self, index: (loaded.append(index), original(self, index))[1])
    model = build_model(tiny_config())

    def twice() -> tuple[list[dict[str, float]], list[int]]:
        measures = monitor(Textures(32), Textures(16, seed=1)) if labelled else monitor(unlabelled(16), None)
        values, counts = [], []
        for _ in range(2):
            loaded.clear()
            values.append(measures.measure(model))
            counts.append(len(loaded))
        return values, counts

    kept, (first, second) = twice()
    batch = tiny_config().training.batch_size  # that of the explained variance
    assert first > second == batch
    monkeypatch.setattr("cjepa.evaluation.monitor.KEPT", 0)
    read_again, (first, second) = twice()
    assert first == second > batch
    assert kept[0] == kept[1] == read_again[0] == read_again[1]


def test_without_labels_crops_are_found_again() -> None:
    values = monitor(unlabelled(16), None)
    assert values.quality == "crop_retrieval"
    assert 0 <= values.measure(build_model(tiny_config()))["crop_retrieval"] <= 100


def test_a_test_class_without_training_images_is_left_out() -> None:
    some = monitor(Textures(32, classes=2), Textures(16, classes=4, seed=1))
    assert some.count == 32
    assert "knn_20_centred" in some.measure(build_model(tiny_config()))


def test_classes_of_two_splits_that_never_meet_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """As those of Parquet files of which only some state names for their numbers."""
    train, test = Textures(32), Textures(16, seed=1)
    train.classes = test.classes = ("0", "1", "2", "3", "cat", "dog", "elk", "owl")
    train.labels = train.labels + 4
    assert monitor(train, test).quality == "crop_retrieval"
    assert "(0, 1, 2, 3) is one of the training images (cat, dog, elk, owl)" in caplog.text
    caplog.clear()
    test.labels = test.labels + 4
    assert monitor(train, test).quality == "knn_20_centred"
    assert not caplog.records


@pytest.mark.parametrize("count", [1, 2, FEWEST - 1])
@pytest.mark.parametrize("labels", [True, False])
def test_a_handful_of_test_images_is_no_collapse(count: int, labels: bool) -> None:
    """Of two embeddings the effective rank is 1, and of one there is none."""
    test = Textures(1, classes=count, seed=1) if labels else unlabelled(1, count)
    few = monitor(Textures(16) if labels else unlabelled(16), test)
    values = few.measure(build_model(tiny_config()))
    assert few.quality == "crop_retrieval"
    assert few.count == 64
    assert values["effective_rank"] > COLLAPSED_RANK


def test_rare_classes_do_not_end_a_run() -> None:
    """Of 8 classes with 8 images each, 5 training images cannot cover all."""
    few = monitor(Textures(8, classes=8), Textures(8, classes=8, seed=1), train_images=5, test_images=64)
    assert 0 < few.count < 64
    few.measure(build_model(tiny_config()))


def test_labels_of_the_training_images_are_split_where_there_are_no_test_images() -> None:
    held_out = monitor(Textures(64), None)
    assert held_out.quality == "knn_20_centred"
    assert 20 < held_out.count < 90


def test_a_linear_probe_is_measured_where_there_are_labels() -> None:
    assert MonitorConfig().evaluations == (PROBE,)
    model = build_model(tiny_config())
    limits = {"train_images": 128, "test_images": 64}
    labelled = monitor(Textures(32), Textures(16, seed=1), **limits)
    values = labelled.measure(model)
    assert labelled.seen is not None
    assert labelled.seen.train is not None
    assert labelled.labelled is not None
    assert labelled.labelled.test is not None
    features = LabelledFeatures.select(
        labelled.seen.train,
        labelled.labelled.train.labels,
        labelled.seen.test,
        labelled.labelled.test.labels,
        labelled.labelled.train.classes,
    )
    expected = linear_accuracy(LinearConfig(inverse_regularisation=(0.03,)), features)
    assert values["linear"] == expected["linear"] > 40, "better than the chance of 25"
    assert "linear" not in monitor(unlabelled(16), None, **limits).measure(model)


def test_evaluations_of_the_command_serve_while_training(caplog: pytest.LogCaptureFixture) -> None:
    evaluations = (LinearConfig(inverse_regularisation=(0.1,)), RetrievalConfig(k=(1,)), RetrievalConfig(k=(10**6,)))
    given = [evaluation.model_dump(mode="json") for evaluation in evaluations]
    values = monitor(Textures(32), Textures(16, seed=1), evaluations=given).measure(build_model(tiny_config()))
    assert {"linear", "retrieval_recall_1", "knn_20_centred"} <= set(values)
    assert "retrieval is left out: k: there are only" in caplog.text, "what cannot be measured must not end a run"


def test_evaluations_are_part_of_the_config(tmp_path: Path) -> None:
    changes = ["monitor.evaluations=[{name: linear, inverse_regularisation: [0.1]}]"]
    config = resolve("demo", changes)
    assert config.monitor.evaluations == (LinearConfig(inverse_regularisation=(0.1,)),)
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert parse(RunConfig, load_yaml(tmp_path / "again.yaml")) == config
    with pytest.raises(InputError, match="leave pooling out"):
        resolve("demo", ["monitor.evaluations=[{name: linear, pooling: {layers: 2}}]"])
