"""Retrieval of patches: their classes, recall against a literal search, known scores, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cjepa.data import DataConfig, FolderConfig
from cjepa.errors import InputError
from cjepa.evaluation import storage
from cjepa.evaluation.patches import PatchRetrievalConfig, open_patch_retrieval, patch_classes
from cjepa.evaluation.retrieval import found_within
from cjepa.evaluation.segmentation_data import UNSCORED
from cjepa.evaluation.work import Work
from tests.evaluation.labelled_colours import small_encoder
from tests.evaluation.test_segmentation import write_scenes

DATA = DataConfig(source=FolderConfig(path=Path("unused")), image_size=16)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path, "train", 12, 0)
    write_scenes(tmp_path, "test", 4, 1)
    return tmp_path


def test_a_patch_has_the_class_of_most_of_its_pixels() -> None:
    mask = np.array([[1, 1, 2, 2], [1, 3, 2, 255], [0, 0, 255, 255], [4, 4, 255, 7]], dtype=np.uint8)
    classes = patch_classes(torch.from_numpy(np.stack([mask, mask.T])), 2)
    assert classes.tolist() == [[1, 2, 0, UNSCORED], [1, 0, 2, UNSCORED]]


@pytest.mark.parametrize("centre", [False, True])
def test_recall_equals_a_literal_search(centre: bool) -> None:
    random = np.random.default_rng(0)
    train, test = random.normal(1, 1, (40, 6)), random.normal(1, 1, (25, 6))
    labels, test_labels = random.integers(0, 4, 40), random.integers(0, 5, 25)  # no training row has class 4
    middle = train.mean(0) if centre else 0.0
    found = found_within(
        (1, 3),
        centre,
        torch.from_numpy(train).float(),
        torch.from_numpy(labels),
        torch.from_numpy(test).float(),
        torch.from_numpy(test_labels),
    )
    for row, label in enumerate(test_labels):
        query = test[row] - middle
        keys = train - middle
        order = np.argsort(-(keys @ query) / np.linalg.norm(keys, axis=1))
        for k in (1, 3):
            assert bool(found[k][row]) == (label in labels[order[:k]])


def test_patches_of_coloured_things_find_their_class(scenes: Path) -> None:
    task = open_patch_retrieval(PatchRetrievalConfig(data=scenes, patches=20), DATA)
    encoder = small_encoder()
    values = task.measure(encoder, Work())
    assert list(values) == [f"patch_recall_{k}{kind}" for k in (1, 5, 10) for kind in ("", "_classes")]
    assert values["patch_recall_1"] > 60
    assert values["patch_recall_1"] <= values["patch_recall_5"] <= values["patch_recall_10"] <= 100
    assert task.measure(encoder, Work(batch_size=1)) == pytest.approx(values, abs=1.0)
    assert task.protocol()["classes"] == 3


def test_features_that_do_not_fit_lie_in_a_file(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = open_patch_retrieval(PatchRetrievalConfig(data=scenes, patches=20), DATA)
    encoder = small_encoder()
    held = task.measure(encoder, Work())
    mapped: list[tuple[int, ...]] = []
    original = np.memmap

    def spied(*arguments: Any, **named: Any) -> Any:
        mapped.append(named["shape"])
        return original(*arguments, **named)

    monkeypatch.setattr(storage, "FITS", 0)
    monkeypatch.setattr(np, "memmap", spied)
    assert task.measure(encoder, Work(scratch=tmp_path)) == held
    assert [shape[0] for shape in mapped] == [12 * 20, 4 * 20]


def test_an_image_smaller_than_a_window_is_seen_whole(scenes: Path) -> None:
    task = open_patch_retrieval(PatchRetrievalConfig(data=scenes, shorter_side=12, k=(1,)), DATA)
    windows, masks = task._windows(*task.data.load(task.data.train[0]))
    assert windows.shape[1:] == (3, 16, 16)
    assert masks.shape[1:] == (16, 16)
    assert (masks[:, :, 12:] == UNSCORED).all(), "what lies beyond the image has no class"
    assert task.measure(small_encoder(), Work()).keys() == {"patch_recall_1", "patch_recall_1_classes"}


def test_unusable_input_is_refused(scenes: Path) -> None:
    with pytest.raises(InputError, match="shorter_side: an image of 28 x 36 pixels would become one of 20000 x 25714"):
        open_patch_retrieval(PatchRetrievalConfig(data=scenes, shorter_side=20_000), DATA)
    few = open_patch_retrieval(PatchRetrievalConfig(data=scenes, patches=1, k=(20,)), DATA)
    with pytest.raises(InputError, match="only 12 training images or patches; ask for fewer"):
        few.measure(small_encoder(), Work())
    for path in (scenes / "masks" / "test").iterdir():
        mask = np.full((36, 28), 255, dtype=np.uint8)
        mask[0, 0] = 0  # most pixels of its patch have no class
        Image.fromarray(mask).save(path)
    empty = open_patch_retrieval(PatchRetrievalConfig(data=scenes), DATA)
    with pytest.raises(InputError, match="no patch of the masks has a class"):
        empty.measure(small_encoder(), Work())
