"""Counting and distance: VTAB's classes, generated scenes in CLEVR's layout, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cjepa.data import DataConfig, FolderConfig
from cjepa.errors import InputError
from cjepa.evaluation.clevr import (
    CountingConfig,
    DistanceConfig,
    count_class,
    distance_class,
    open_counting,
    open_distance,
)
from cjepa.evaluation.linear import LinearConfig
from cjepa.evaluation.work import Work
from tests.evaluation.labelled_colours import small_encoder

DATA = DataConfig(source=FolderConfig(path=Path("unused")), image_size=32, evaluation_crop=0.5)
PROBE = LinearConfig(inverse_regularisation=(0.1,))


def write_scenes(root: Path, split: str, count: int, seed: int) -> None:
    """Squares on grey, 48 x 32: as many as the scene says, larger where the nearest is nearer."""
    random = np.random.default_rng(seed)
    (root / "images" / split).mkdir(parents=True, exist_ok=True)
    (root / "scenes").mkdir(exist_ok=True)
    scenes = []
    for index in range(count):
        number, depth = 3 + index % 8, 7.6 + 0.5 * (index % 6)
        pixels = random.normal(110, 4, (32, 48, 3))
        places = random.permutation(24)[:number]
        objects = []
        for order, place in enumerate(places):
            top, left = 8 * (place // 6), 8 * (place % 6)
            side = round(22 - 2 * depth) if order == 0 else 2
            pixels[top : top + side, left : left + side] = (250, 40, 40)
            distance = depth if order == 0 else depth + 1
            objects.append({"pixel_coords": [int(left), int(top), distance], "size": "small"})
        name = f"CLEVR_{split}_{index:06d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / split / name)
        scenes.append({"image_filename": name, "image_index": index, "split": split, "objects": objects})
    (root / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"info": {}, "scenes": scenes}))


@pytest.fixture
def clevr(tmp_path: Path) -> Path:
    write_scenes(tmp_path, "train", 96, 0)
    write_scenes(tmp_path, "val", 48, 1)
    return tmp_path


def scene(*depths: float) -> dict[str, Any]:
    return {"objects": [{"pixel_coords": [0, 0, depth]} for depth in depths]}


def test_vtab_s_classes() -> None:
    assert [count_class(scene(*[9.0] * count)) for count in (3, 4, 10)] == [0, 1, 7]
    depths = {7.0: 0, 8.0: 0, 8.01: 1, 8.5: 1, 8.7: 2, 9.2: 3, 9.9: 4, 10.0: 4, 10.1: 5, 50.0: 5}
    for depth, expected in depths.items():
        assert distance_class(scene(depth, depth + 3, depth + 1)) == expected, depth


def test_what_features_tell_is_found(clevr: Path) -> None:
    encoder = small_encoder(size=32)
    counting = open_counting(CountingConfig(data=clevr, probe=PROBE), DATA)
    distance = open_distance(DistanceConfig(data=clevr, probe=PROBE), DATA)
    assert counting.measure(encoder, Work())["counting"] > 30  # chance is 12.5
    assert distance.measure(encoder, Work())["distance"] > 40  # chance is 16.7
    assert set(counting.measure_baseline("colour statistics", Work())) == {"counting"}
    protocol = counting.protocol()
    assert (protocol["train_images"], protocol["test_images"], protocol["classes"]) == (96, 48, 8)
    assert protocol["evaluation_crop"] == 1.0
    assert protocol["images"] != distance.protocol()["images"]


def test_other_images_of_the_same_names_are_other_images(clevr: Path) -> None:
    before = open_counting(CountingConfig(data=clevr), DATA).protocol()["images"]
    assert open_counting(CountingConfig(data=clevr), DATA).protocol()["images"] == before
    Image.new("RGB", (48, 32)).save(clevr / "images" / "val" / "CLEVR_val_000003.png")
    assert open_counting(CountingConfig(data=clevr), DATA).protocol()["images"] != before


def test_labels_are_those_of_the_scenes_and_nothing_is_cut_off(clevr: Path) -> None:
    images = open_counting(CountingConfig(data=clevr), DATA).images
    assert images.train.labels.tolist()[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert images.train.names[1] == "CLEVR_train_000001.png"
    assert images.train.load(0).size == (32, 32)
    red = np.asarray(images.train.load(7)).astype(int)
    assert ((red[..., 0] - red[..., 1]) > 50).sum() > 20


def broken(clevr: Path, what: str) -> None:
    path = clevr / "scenes" / "CLEVR_val_scenes.json"
    content = json.loads(path.read_text())
    match what:
        case "missing":
            path.unlink()
            return
        case "text":
            path.write_text("{")
            return
        case "empty":
            content["scenes"] = []
        case "too many":
            content["scenes"][2]["objects"] *= 4
        case "no depth":
            content["scenes"][2]["objects"][0]["pixel_coords"] = [1, 2]
        case "image":
            (clevr / "images" / "val" / "CLEVR_val_000003.png").unlink()
        case "outside":
            content["scenes"][0]["image_filename"] = "../train/CLEVR_train_000000.png"
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "does not exist; unpack CLEVR_v1.0"),
        ("text", "cannot be read"),
        ("empty", "holds no scenes"),
        ("too many", "scene 2 cannot be used: 20 objects, and CLEVR's scenes hold 3 to 10"),
        ("image", "CLEVR_val_000003.png, named in .*, does not exist"),
        ("outside", "does not exist"),
    ],
)
def test_unusable_scenes_are_refused(clevr: Path, what: str, message: str) -> None:
    broken(clevr, what)
    with pytest.raises(InputError, match=message):
        open_counting(CountingConfig(data=clevr), DATA)


def test_a_scene_without_depth_is_refused(clevr: Path) -> None:
    broken(clevr, "no depth")
    with pytest.raises(InputError, match="scene 2 cannot be used"):
        open_distance(DistanceConfig(data=clevr), DATA)
