"""The cheap evaluation during training: which images it takes, and what it does where labels are missing or rare."""

import numpy as np
import torch

from cjepa.build import build_model, build_stream
from cjepa.data import Splits
from cjepa.evaluation.monitor import Monitor
from tests.training.conftest import Textures, tiny_config

CPU = torch.device("cpu")


def monitor(train: Textures, test: Textures | None, **limits: int) -> Monitor:
    config = tiny_config(monitor=limits) if limits else tiny_config()
    splits = Splits(train, test)
    return Monitor(config.monitor, config.data, splits, build_stream(config, splits), CPU, "float32")


def unlabelled(per_class: int) -> Textures:
    images = Textures(per_class)
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


def test_without_labels_crops_are_found_again() -> None:
    values = monitor(unlabelled(16), None)
    assert values.quality == "crop_retrieval"
    assert 0 <= values.measure(build_model(tiny_config()))["crop_retrieval"] <= 100


def test_a_test_class_without_training_images_is_left_out() -> None:
    some = monitor(Textures(32, classes=2), Textures(16, classes=4, seed=1))
    assert some.count == 32
    assert "knn_20_centred" in some.measure(build_model(tiny_config()))


def test_rare_classes_do_not_end_a_run() -> None:
    """Of 8 classes with 8 images each, 5 training images cannot cover all."""
    few = monitor(Textures(8, classes=8), Textures(8, classes=8, seed=1), train_images=5, test_images=64)
    assert 0 < few.count < 64
    few.measure(build_model(tiny_config()))


def test_labels_of_the_training_images_are_split_where_there_are_no_test_images() -> None:
    held_out = monitor(Textures(64), None)
    assert held_out.quality == "knn_20_centred"
    assert 20 < held_out.count < 90
