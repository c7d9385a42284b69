"""Images with objects in COCO's layout, checked before anything is trained."""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from cjepa.data import UnreadableImageError, decode
from cjepa.data.decoding import PILLOW_LIMIT, stored_size
from cjepa.errors import InputError
from cjepa.evaluation.fingerprint import fingerprint_of

LAYOUTS = (("train2017", "val2017"), ("train", "val"))
"""Names of the splits: images in DIR/SPLIT or DIR/images/SPLIT, objects in DIR/annotations/instances_SPLIT.json."""


@dataclass(frozen=True)
class CocoSplit:
    """One split: its images by id, and its objects as pycocotools holds them."""

    images: Path
    index: Any
    ids: tuple[int, ...]

    def path(self, image_id: int) -> Path:
        """Where an image lies."""
        path: Path = self.images / self.index.imgs[image_id]["file_name"]
        return path

    def load(self, image_id: int) -> Image.Image:
        """The image in mode RGB; InputError when it cannot be read or has another size than its annotation says."""
        entry = self.index.imgs[image_id]
        path = self.path(image_id)
        try:
            image = decode(path, PILLOW_LIMIT)
        except UnreadableImageError as error:
            raise InputError(
                f"{path} cannot be read: {error}; replace it, or remove it from the annotations"
            ) from error
        if image.size != (entry["width"], entry["height"]):
            raise InputError(
                f"{path} has {image.width} x {image.height} pixels, its annotation says {entry['width']} x "
                f"{entry['height']}; use the images that the annotations were made for"
            )
        return image

    def objects(self, image_id: int) -> list[dict[str, Any]]:
        """The objects of an image that are trained on: not crowds, not empty."""
        found = self.index.loadAnns(self.index.getAnnIds(imgIds=image_id))
        return [each for each in found if not each.get("iscrowd") and min(each["bbox"][2:]) > 0]

    def mask(self, thing: dict[str, Any]) -> Bool[np.ndarray, "H W"]:
        """The pixels of an object."""
        mask: np.ndarray = self.index.annToMask(thing)
        return mask.astype(bool)


@dataclass(frozen=True)
class CocoData:
    """Training and test split, and COCO's numbers of the categories: category `labels[i]` is class i + 1."""

    train: CocoSplit
    test: CocoSplit
    labels: tuple[int, ...]
    fingerprint: str


def open_coco(root: Path) -> CocoData:
    """COCO's folder, or one of its layout; InputError where images, objects or pycocotools are missing.

    Every test image is decoded once, so that one that cannot be is refused before anything is trained.
    """
    names = next((each for each in LAYOUTS if _annotations(root, each[0]).is_file()), None)
    if names is None:
        raise InputError(
            f"{root} has no annotations in COCO's layout; it needs annotations/instances_train2017.json and "
            "instances_val2017.json (or instances_train.json, instances_val.json) beside the folders of images"
        )
    train, test = (_split(root, name) for name in names)
    _refuse_other_names(names, train, test)
    labels = tuple(sorted(train.index.cats))
    unseen = {each["category_id"] for each in test.index.anns.values()} - {
        each["category_id"] for each in train.index.anns.values()
    }
    if unseen:
        raise InputError(
            f"no training object in {root} has category {min(unseen)}, which test objects have; add such images or "
            "remove the category from the test annotations"
        )
    for image_id in test.ids:  # one that is cut has a good header, and would end the evaluation after all training
        test.load(image_id)
    digest = hashlib.sha256(b"".join(_annotations(root, name).read_bytes() for name in names))
    digest.update(fingerprint_of(split.path(image_id) for split in (train, test) for image_id in split.ids).encode())
    return CocoData(train, test, labels, digest.hexdigest()[:16])


def _refuse_other_names(names: tuple[str, str], train: CocoSplit, test: CocoSplit) -> None:
    """Some exporters number the categories of each split anew: then a number is another thing in the other file."""
    for number, category in train.index.cats.items():
        pair = [category.get("name"), test.index.cats.get(number, {}).get("name")]
        if None not in pair and len({str(name).strip().casefold() for name in pair}) > 1:
            raise InputError(
                f"category {number} is called {pair[0]!r} in instances_{names[0]}.json, but {pair[1]!r} in instances_"
                f"{names[1]}.json; number the categories of both alike"
            )


def _annotations(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _split(root: Path, name: str) -> CocoSplit:
    path = _annotations(root, name)
    images = next((each for each in (root / name, root / "images" / name) if each.is_dir()), None)
    if images is None:
        raise InputError(f"{root / name} does not exist; put the images of {path.name} there")
    index = _index(path)
    objects = index.dataset["annotations"]
    annotated = {each["image_id"] for each in objects}
    ids = tuple(sorted(index.imgs))
    foreign = annotated - set(ids)
    if foreign:
        raise InputError(f"{path} has objects of image {min(foreign)}, which it does not list; repair the annotations")
    wrong = [each for each in objects if each["category_id"] not in index.cats]
    if wrong:
        raise InputError(
            f"{path}: object {wrong[0]['id']} has category {wrong[0]['category_id']}, which is not among its "
            "categories; correct the annotations"
        )
    bare = [each for each in objects if not each.get("segmentation")]
    if bare:
        raise InputError(f"{path}: object {bare[0]['id']} has no segmentation; Mask R-CNN needs a mask of every object")
    missing = [index.imgs[each]["file_name"] for each in ids if not (images / index.imgs[each]["file_name"]).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} images of {path.name} are not in {images}, the first is {missing[0]}; add them"
        )
    _complete(index)
    split = CocoSplit(images, index, ids)
    for each in ids:
        entry = index.imgs[each]
        if stored_size(split.path(each)) != (entry["width"], entry["height"]):
            split.load(each)  # an InputError, unless EXIF turns it
    if not any(split.objects(each) for each in ids):
        but = " but crowds or empty ones" if objects else ""
        raise InputError(f"{path} holds no objects{but}; detection needs boxes and masks to learn from and to score")
    return split


def _complete(index: Any) -> None:
    """Give objects what pycocotools needs to score them and many files leave out.

    And numbers from 1 on: it takes a match with an object of number 0 for none, and objects of one number for one.
    """
    from pycocotools import mask as encoding

    for number, each in enumerate(index.dataset["annotations"], start=1):
        each["id"] = number
        each["iscrowd"] = int(bool(each.get("iscrowd")))
        if "area" not in each or not each.get("bbox"):
            encoded = index.annToRLE(each)
            each.setdefault("area", float(encoding.area(encoded)))
            each["bbox"] = each.get("bbox") or encoding.toBbox(encoded).tolist()
    _indexed(index)


def _index(path: Path) -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise InputError('detection needs pycocotools: pip install "cjepa[detection]"') from error
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        index = COCO()
        index.dataset = {key: content[key] for key in ("images", "annotations", "categories")} | {"info": {}}
        _indexed(index)
        for each in content["images"]:
            each["file_name"], each["width"], each["height"]  # a KeyError names what is missing
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as COCO annotations ({type(error).__name__}: {error})") from error
    return index


def _indexed(index: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how far it is
        index.createIndex()


def scores(truth: Any, found: list[dict[str, Any]]) -> dict[str, float]:
    """Average precision of boxes and of masks by pycocotools, percent: COCO's AP, AP50 and AP75 of each."""
    from pycocotools.cocoeval import COCOeval

    values = {}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        precisions = [0.0, 0.0, 0.0]
        if found:
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation = COCOeval(truth, truth.loadRes([dict(each) for each in found]), kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            precisions = [float(each) for each in evaluation.stats[:3]]
        for label, precision in zip(("AP", "AP50", "AP75"), precisions, strict=True):
            values[f"{name}_{label}"] = 100 * precision
    return values


def as_results(image_id: int, labels: tuple[int, ...], prediction: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """A prediction of torchvision's Mask R-CNN for one image in COCO's result format."""
    from pycocotools import mask as encoding

    results = []
    masks = prediction["masks"][:, 0] > 0.5
    for box, label, score, mask in zip(
        prediction["boxes"].tolist(), prediction["labels"].tolist(), prediction["scores"].tolist(), masks, strict=True
    ):
        encoded = encoding.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
        left, top, right, bottom = box
        results.append(
            {
                "image_id": image_id,
                "category_id": labels[label - 1],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            }
        )
    return results
