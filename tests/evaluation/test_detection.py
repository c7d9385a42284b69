"""Detection: generated shapes with exact masks in COCO's layout, average precision, resuming, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as encoding

from cjepa.data import DataConfig, FolderConfig
from cjepa.errors import InputError, StoppedEarly
from cjepa.evaluation.coco import as_results, open_coco, scores
from cjepa.evaluation.detection import (
    DetectionConfig,
    ObjectBatches,
    backbone_of,
    boxes_of,
    build_detector,
    fitted_size,
    open_detection,
    parameter_groups,
    parts,
    to_image,
)
from cjepa.evaluation.labelled import counts_images
from cjepa.evaluation.work import Work
from cjepa.runs.keeping import RunKeeper
from tests.evaluation.labelled_colours import small_encoder

DATA = DataConfig(source=FolderConfig(path=Path("unused")), image_size=64)


def write_shapes(root: Path, split: str, count: int, seed: int) -> None:
    """A red disc (category 3) and a green square (category 7) on grey, 80 x 60, masks exact."""
    random = np.random.default_rng(seed)
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    rows, columns = np.mgrid[:60, :80]
    images, annotations = [], []
    for index in range(1, count + 1):
        pixels = random.normal(120, 6, (60, 80, 3))
        top, left = (int(each) for each in random.integers(2, 30, 2))
        disc = (rows - top - 12) ** 2 + (columns - left - 12) ** 2 <= 144
        square = (np.abs(rows - 30) <= 10) & (np.abs(columns - 66) <= 10)
        for mask, category, colour in ((disc, 3, (250, 30, 30)), (square & ~disc, 7, (30, 220, 30))):
            pixels[mask] = colour
            encoded = encoding.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": category,
                    "bbox": encoding.toBbox(encoded).tolist(),
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                }
            )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 80, "height": 60})
    categories = [{"id": 3, "name": "disc"}, {"id": 7, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    write_shapes(tmp_path, "train", 6, 0)
    write_shapes(tmp_path, "val", 3, 1)
    return tmp_path


def true_predictions(shapes: Path, shift: float = 0.0) -> tuple[Any, list[dict[str, Any]]]:
    """What a perfect detector would say, its boxes and masks moved to the right by `shift` pixels."""
    data = open_coco(shapes)
    found = []
    for image_id in data.test.ids:
        things = data.test.objects(image_id)
        masks = torch.from_numpy(np.stack([np.roll(data.test.mask(thing), int(shift), 1) for thing in things]))
        boxes = boxes_of(torch.from_numpy(np.stack([data.test.mask(thing) for thing in things])))
        prediction = {
            "boxes": boxes + torch.tensor([shift, 0, shift, 0]),
            "labels": torch.tensor([data.labels.index(thing["category_id"]) + 1 for thing in things]),
            "scores": torch.full((len(things),), 0.9),
            "masks": masks[:, None].float(),
        }
        found += as_results(image_id, data.labels, prediction)
    return data.test.index, found


def test_a_perfect_detector_and_one_that_finds_nothing(shapes: Path) -> None:
    truth, found = true_predictions(shapes)
    assert {round(value, 6) for value in scores(truth, found).values()} == {100.0}
    assert set(scores(truth, []).values()) == {0.0}


def test_average_precision_equals_torchmetrics(shapes: Path) -> None:
    from torchmetrics.detection import MeanAveragePrecision

    truth, found = true_predictions(shapes, shift=3)
    for number, each in enumerate(found):
        each["score"] = 0.5 + 0.05 * number
    found = [*found[:-1], found[0] | {"category_id": 7, "score": 0.99}]  # one missed, one false
    values = scores(truth, found)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        metric = MeanAveragePrecision(iou_type=kind)
        for image_id in sorted(truth.imgs):
            metric.update([as_metric(found, image_id)], [as_metric(truth.imgToAnns[image_id], image_id)])
        result = metric.compute()
        for label, key in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75")):
            assert values[f"{name}_{label}"] == pytest.approx(100 * float(result[key]), abs=1e-3)
    assert 0 < values["mask_AP"] < values["mask_AP50"] < 100


def rewritten(shapes: Path, change: Callable[[int, dict[str, Any]], None]) -> Path:
    """The test annotations, each changed as its number from 0 says."""
    path = shapes / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for number, each in enumerate(content["annotations"]):
        change(number, each)
    path.write_text(json.dumps(content))
    return shapes


@pytest.mark.parametrize("numbered", [lambda number: number, lambda _: 1])
def test_how_a_file_numbers_its_objects_changes_no_score(shapes: Path, numbered: Callable[[int], int]) -> None:
    """pycocotools takes a match with object 0 for none, and objects of one number for one."""
    rewritten(shapes, lambda number, each: each.update(id=numbered(number)))
    truth, found = true_predictions(shapes)
    assert len(truth.anns) == len(found) == 6
    assert {round(value, 6) for value in scores(truth, found).values()} == {100.0}


def test_what_a_file_leaves_out_is_taken_from_the_masks(shapes: Path) -> None:
    before = open_coco(shapes).test.index.anns
    missing = ("area", "bbox", "iscrowd")
    rewritten(shapes, lambda number, each: each.pop(missing[number % 3]) and each.pop(missing[(number + 1) % 3]))
    truth, found = true_predictions(shapes)
    assert truth.anns == before
    assert {round(value, 6) for value in scores(truth, found).values()} == {100.0}


def as_metric(things: list[dict[str, Any]], image_id: int) -> dict[str, torch.Tensor]:
    own = [each for each in things if each["image_id"] == image_id]
    boxes = torch.tensor([each["bbox"] for each in own]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = np.stack([encoding.decode(each["segmentation"]) for each in own])
    return {
        "boxes": boxes,
        "labels": torch.tensor([each["category_id"] for each in own]),
        "masks": torch.from_numpy(masks).bool(),
        "scores": torch.tensor([each.get("score", 1.0) for each in own]),
    }


def test_training_images_carry_their_objects(shapes: Path) -> None:
    data = open_coco(shapes)
    batches = ObjectBatches(data, data.train.ids, 40, 6, 0)
    images, targets = batches[2]
    for image, target in zip(images, targets, strict=True):
        assert image.shape == (3, 40, 40)
        assert (image[:, 30:] == 114).all()  # 60 x 80 becomes 30 x 40
        torch.testing.assert_close(target["boxes"], boxes_of(target["masks"].bool()))
        for label, mask in zip(target["labels"].tolist(), target["masks"].bool(), strict=True):
            colour = image[:, mask].float().mean(1)
            assert int(colour.argmax()) == label - 1  # disc: class 1, red; square: class 2, green
    assert all(torch.equal(first, again) for first, again in zip(images, batches[2][0], strict=True))


def test_other_images_of_the_same_names_are_other_images(shapes: Path) -> None:
    before = open_coco(shapes).fingerprint
    assert open_coco(shapes).fingerprint == before
    Image.new("RGB", (80, 60)).save(shapes / "val" / "2.png")
    assert open_coco(shapes).fingerprint != before


def test_predictions_return_to_the_image() -> None:
    image = Image.new("RGB", (80, 60))
    assert fitted_size(image, 40) == (30, 40)
    masks = torch.zeros(1, 1, 40, 40)
    masks[..., 5:15, 10:20] = 1
    prediction = {"boxes": torch.tensor([[10.0, 5, 20, 15]]), "masks": masks}
    back = to_image(prediction, (30, 40), (60, 80))
    torch.testing.assert_close(back["boxes"], torch.tensor([[20.0, 10, 40, 30]]))
    torch.testing.assert_close(boxes_of(back["masks"][:, 0] > 0.5), torch.tensor([[20.0, 10, 40, 30]]))


def test_objects_are_looked_at_a_few_at_a_time() -> None:
    prediction = {"boxes": torch.arange(80.0).reshape(20, 4), "scores": torch.arange(20.0)}
    found = list(parts(prediction))
    assert [len(each["scores"]) for each in found] == [8, 8, 4]
    for name, values in prediction.items():
        assert torch.equal(torch.cat([each[name] for each in found]), values)
    assert list(parts({"boxes": torch.zeros(0, 4)})) == []


def test_it_trains_scores_and_continues_to_the_bit(shapes: Path, tmp_path: Path) -> None:
    config = DetectionConfig(data=shapes, epochs=2, batch_size=4, channels=8, rate=1e-3, size=32)
    task = open_detection(config, DATA)
    protocol = task.protocol()
    assert not counts_images(protocol), "it counts objects"
    assert (protocol["train_images"], protocol["test_images"], protocol["classes"]) == (6, 3, 2)
    encoder = small_encoder(patch_size=8, size=32)
    expected = task.measure(encoder, Work())
    assert set(expected) == {"box_AP", "box_AP50", "box_AP75", "mask_AP", "mask_AP50", "mask_AP75"}
    keeper, asked = RunKeeper(tmp_path / "run", {}), iter([None, "SIGTERM"])
    with pytest.raises(StoppedEarly, match="after step 2 of 3"):
        task.measure(encoder, Work(keeper=keeper, stop=lambda: next(asked)))
    assert task.measure(encoder, Work(keeper=keeper)) == expected


def test_rates_fall_towards_the_pixels_as_in_vitdet() -> None:
    """Layer l of L + 1 at decay^(L + 1 - l): the last block is one step below what follows it, not level with it."""
    config = DetectionConfig(data=Path("unused"), channels=8, rate=1e-3, tune=0.5, layer_decay=0.7)
    model = build_detector(small_encoder(patch_size=8, size=32), config, 2, 32)
    rates = {id(each): group["lr"] for group in parameter_groups(model, config) for each in group["params"]}
    factors = {"patch_projection": 0.7**3, "blocks.0": 0.7**2, "blocks.1": 0.7, "norm": 1.0}
    places = {f"backbone.encoder.encoder.{place}.": 0.5e-3 * factor for place, factor in factors.items()}
    for name, each in model.named_parameters():
        expected = next((rate for place, rate in places.items() if name.startswith(place)), 1e-3)
        assert rates.pop(id(each)) == pytest.approx(expected), name
    assert not rates
    backbone_of(model).encoder.requires_grad_(False)
    frozen = [each for group in parameter_groups(model, config) for each in group["params"]]
    assert {id(each) for each in frozen} == {id(each) for each in model.parameters() if each.requires_grad}


@pytest.mark.slow
def test_it_learns_to_find_shapes(shapes: Path) -> None:
    config = DetectionConfig(data=shapes, epochs=100, batch_size=6, channels=32, regions=64, rate=1e-3, size=64)
    values = open_detection(config, DATA).measure(small_encoder(patch_size=8, size=64), Work())
    assert values["box_AP50"] > 60
    assert values["mask_AP50"] > 60


def test_patches_must_halve_the_image() -> None:
    with pytest.raises(InputError, match="power of two, not 6"):
        build_detector(small_encoder(patch_size=6), DetectionConfig(data=Path("unused"), channels=8), 2, 24)


def test_the_size_must_hold_whole_patches(shapes: Path) -> None:
    with pytest.raises(InputError, match="30 cannot be cut into patches of 8"):
        open_detection(DetectionConfig(data=shapes, size=30), DATA).measure(small_encoder(8), Work())


def broken(shapes: Path, what: str) -> None:
    path = shapes / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    match what:
        case "layout":
            (shapes / "annotations" / "instances_train.json").unlink()
        case "images":
            (shapes / "val" / "2.png").unlink()
        case "objects":
            content["annotations"] = []
        case "crowds":
            for each in content["annotations"]:
                each["iscrowd"] = 1
        case "width":
            del content["images"][0]["width"]
        case "category":
            content["annotations"][0]["category_id"] = 5
        case "foreign":
            content["annotations"][0]["image_id"] = 99
        case "mask":
            del content["annotations"][0]["segmentation"]
        case "unseen":
            train = shapes / "annotations" / "instances_train.json"
            other = json.loads(train.read_text())
            other["annotations"] = [each for each in other["annotations"] if each["category_id"] == 3]
            train.write_text(json.dumps(other))
        case "names":
            first, second = content["categories"]
            first["name"], second["name"] = second["name"], first["name"]
        case "text":
            path.write_text("[")
            return
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("layout", "has no annotations in COCO's layout"),
        ("images", "1 images of instances_val.json are not in .*, the first is 2.png"),
        ("objects", "holds no objects; detection needs boxes and masks"),
        ("crowds", "holds no objects but crowds or empty ones"),
        ("width", r"cannot be read as COCO annotations \(KeyError: 'width'\)"),
        ("category", "object 1 has category 5, which is not among its categories"),
        ("foreign", "has objects of image 99, which it does not list"),
        ("mask", "object 1 has no segmentation"),
        ("unseen", "no training object in .* has category 7"),
        ("names", "category 3 is called 'disc' in instances_train.json, but 'square' in instances_val.json"),
        ("text", "cannot be read as COCO annotations"),
    ],
)
def test_unusable_annotations_are_refused(shapes: Path, what: str, message: str) -> None:
    broken(shapes, what)
    with pytest.raises(InputError, match=message):
        open_coco(shapes)


def test_an_image_of_another_size_is_refused(shapes: Path) -> None:
    Image.new("RGB", (10, 10)).save(shapes / "val" / "1.png")
    with pytest.raises(InputError, match="10 x 10 pixels, its annotation says 80 x 60"):
        open_coco(shapes)


def test_a_test_image_that_is_cut_is_refused_before_anything_is_trained(shapes: Path) -> None:
    """Its header is whole, so that nothing but decoding tells."""
    path = shapes / "val" / "2.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"2\.png cannot be read: .*; replace it, or remove it from the annotations"):
        open_coco(shapes)


@pytest.mark.parametrize("package", ["torchvision", "pycocotools.coco"])
def test_missing_packages_are_named(shapes: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r'pip install "cjepa\[detection\]"'):
        open_detection(DetectionConfig(data=shapes), DATA)
