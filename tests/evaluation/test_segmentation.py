"""Segmentation: scores equal to torchmetrics, windows that tile an image, layouts, and what is refused."""

import copy
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from cjepa.data import DataConfig, FolderConfig
from cjepa.errors import InputError, StoppedEarly
from cjepa.evaluation.confusion import confusion_of, segmentation_scores
from cjepa.evaluation.pyramid import SemanticFpn, SimplePyramid
from cjepa.evaluation.segmentation import SegmentationConfig, Segmenter, Windows, open_segmentation
from cjepa.evaluation.segmentation_data import UNSCORED, open_segmentation_data
from cjepa.evaluation.sliding import multi_scale, sliding, starts
from cjepa.evaluation.upernet import PooledContext, UperNet, tapped_blocks
from cjepa.evaluation.work import Work
from cjepa.runs.keeping import RunKeeper
from tests.evaluation.labelled_colours import small_encoder

DATA = DataConfig(source=FolderConfig(path=Path("unused")), image_size=16)


def write_scenes(root: Path, split: str, count: int, seed: int, masks: str = "masks", shift: int = 0) -> None:
    """A coloured rectangle (class 1 or 2) on a grey ground (class 0), with a margin that has no label (255)."""
    random = np.random.default_rng(seed)
    for folder in ("images", masks):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = random.normal(110, 25, (36, 28, 3))
        labels = np.full((36, 28), shift, dtype=np.uint8)
        kind, top, left = 1 + index % 2, *random.integers(0, 14, 2)
        pixels[top : top + 16, left : left + 14, kind] += 90
        labels[top : top + 16, left : left + 14] = kind + shift
        labels[:2] = 0 if shift else 255
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{index:02d}.png")
        Image.fromarray(labels).save(root / masks / split / f"{index:02d}.png")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path, "train", 12, 0)
    write_scenes(tmp_path, "test", 4, 1)
    return tmp_path


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6), noise=st.floats(0, 1))
def test_scores_equal_torchmetrics(seed: int, classes: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, max(classes - seed % 2, 1), (9, 11))  # sometimes a class without a pixel
    predicted = np.where(random.random(truth.shape) < noise, random.integers(0, classes, truth.shape), truth)
    truth[random.random(truth.shape) < 0.2] = UNSCORED
    scores = segmentation_scores(confusion_of(truth, predicted, classes))
    pair = torch.from_numpy(predicted), torch.from_numpy(truth)
    union = MulticlassJaccardIndex(classes, average="macro", ignore_index=UNSCORED)(*pair)
    pixels = MulticlassAccuracy(classes, average="micro", ignore_index=UNSCORED)(*pair)
    each = MulticlassAccuracy(classes, average=None, ignore_index=UNSCORED)(*pair)
    present = torch.tensor([bool((truth == label).any()) for label in range(classes)])
    assert scores["mIoU"] == pytest.approx(100 * float(union), abs=1e-4)
    assert scores["aAcc"] == pytest.approx(100 * float(pixels), abs=1e-4)
    assert scores["mAcc"] == pytest.approx(100 * float(each[present].mean()), abs=1e-4)


def test_perfect_and_random_predictions() -> None:
    truth = np.arange(40_000).reshape(200, 200) % 4
    assert set(segmentation_scores(confusion_of(truth, truth, 4)).values()) == {100.0}
    random = np.random.default_rng(0).integers(0, 4, truth.shape)
    scores = segmentation_scores(confusion_of(truth, random, 4))
    assert scores["aAcc"] == pytest.approx(25, abs=1)
    assert scores["mAcc"] == pytest.approx(25, abs=1)
    assert scores["mIoU"] == pytest.approx(100 / 7, abs=1)  # 1/16 over 1/4 + 1/4 - 1/16


@given(length=st.integers(1, 200), window=st.integers(1, 60), stride=st.integers(1, 60))
def test_windows_cover_an_image_and_stay_inside(length: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    places = starts(length, window, stride)
    covered = {pixel for place in places for pixel in range(place, place + window)}
    assert set(range(length)) <= covered
    assert places == sorted(set(places))
    if length >= window:
        assert max(covered) == length - 1


def colours(windows: torch.Tensor) -> torch.Tensor:
    """A prediction that is a function of the pixel alone: windows must not be seen in it."""
    return windows.float() / 255


@pytest.mark.parametrize("size", [(36, 28), (10, 40), (7, 9)])
def test_sliding_puts_windows_back_where_they_were(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    result = sliding(image, colours, (16, 16), 2 / 3, batch_size=4)
    torch.testing.assert_close(result, image / 255)


def test_scales_and_mirror_images_come_back_to_the_image() -> None:
    gradient = np.linspace(0, 255, 40)[None, :, None] * np.ones((30, 1, 3))
    image = Image.fromarray(gradient.astype(np.uint8))
    result = multi_scale(image, colours, (16, 16), None, (0.5, 1.0, 1.5), True, 0.5, 8, torch.device("cpu"))
    assert result.shape == (3, 30, 40)
    expected = torch.from_numpy(gradient / 255).permute(2, 0, 1).float()
    torch.testing.assert_close(result, expected, atol=0.02, rtol=0)
    smaller = multi_scale(image, colours, (16, 16), 16, (1.0,), False, 0.5, 8, torch.device("cpu"))
    assert smaller.shape == (3, 30, 40)


class Sizes(TorchDispatchMode):
    """The most numbers in one tensor that an operation within made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.most = max(self.most, result.numel() if isinstance(result, torch.Tensor) else 0)
        return result


def test_many_looks_at_an_image_need_no_more_memory_than_two() -> None:
    image = Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8))
    with Sizes() as sizes:
        multi_scale(image, colours, (16, 16), None, (0.25, 0.5, 0.5, 0.75), True, 1.0, 1, torch.device("cpu"))
    assert sizes.most == 3 * 64 * 64


def test_training_windows_keep_pixels_and_labels_together(scenes: Path) -> None:
    config = SegmentationConfig(data=scenes)
    windows = Windows(config, open_segmentation_data(scenes, None, 255, None), (24, 24), 6, 0)
    images, masks = windows[3]
    assert images.shape == (6, 3, 24, 24)
    again = windows[3]
    assert torch.equal(images, again[0])
    assert torch.equal(masks, again[1])
    excess = images[:, 1].float() - images[:, 2].float()
    assert float(excess[masks == 1].mean()) > 50
    assert float(excess[masks == 2].mean()) < -50
    assert abs(float(excess[masks == 0].mean())) < 20


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"head": "fpn", "channels": 16, "tune": 0.1, "epochs": 40},
        {"head": "upernet", "channels": 16, "epochs": 60, "rate": 3e-3},
        {"layers": 2},
        {"whiten": False, "epochs": 40},
    ],
)
def test_it_learns_and_leaves_the_encoder_alone(scenes: Path, keys: dict[str, object]) -> None:
    config = SegmentationConfig.model_validate(
        {"data": scenes, "epochs": 20, "batch_size": 6, "rate": 1e-2, "train_scales": (0.8, 1.25), "stride": 1.0} | keys
    )
    encoder = small_encoder()
    before = copy.deepcopy(encoder.state_dict())
    values = open_segmentation(config, DATA).measure(encoder, Work())
    assert set(values) == {"mIoU", "mAcc", "aAcc"}
    assert values["mIoU"] > 55  # ground alone gives about 25
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_interrupted_it_ends_with_the_same_scores(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = open_segmentation(SegmentationConfig(data=scenes, epochs=3, batch_size=6), DATA)
    expected = task.measure(small_encoder(), Work())
    keeper, asked = RunKeeper(tmp_path / "run", {}), iter([None, "SIGTERM"])
    with pytest.raises(StoppedEarly):
        task.measure(small_encoder(), Work(keeper=keeper, stop=lambda: next(asked)))
    monkeypatch.delattr("cjepa.evaluation.segmentation.Moments")  # what the head whitens with was kept
    assert task.measure(small_encoder(), Work(keeper=keeper)) == expected


def test_ade20k_s_layout(tmp_path: Path) -> None:
    write_scenes(tmp_path, "training", 3, 0, "annotations", shift=1)
    write_scenes(tmp_path, "validation", 2, 1, "annotations", shift=1)
    data = open_segmentation_data(tmp_path, None, 255, None)
    assert (len(data.train), len(data.test), data.classes, data.shift) == (3, 2, 3, 1)
    _, mask = data.load(data.train[0])
    assert set(np.unique(mask)) == {0, 1, UNSCORED}
    assert (mask[:2] == UNSCORED).all()


def test_the_unlabelled_class_is_no_class(scenes: Path) -> None:
    data = open_segmentation_data(scenes, None, 255, None)
    assert data.classes == 3
    with pytest.raises(InputError, match="has the label 255"):
        open_segmentation_data(scenes, 2, 2, None)


def test_the_pyramid_s_scales() -> None:
    maps = SimplePyramid(32, 8)(torch.randn(2, 32, 4, 6))
    assert [tuple(each.shape) for each in maps] == [(2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    assert SemanticFpn(32, 5, 8)(torch.randn(2, 32, 3, 5)).shape == (2, 5, 12, 20)
    assert SemanticFpn(32, 5, 8)(torch.randn(2, 32, 1, 1)).shape[:2] == (2, 5)


def test_upernet_s_scales_and_blocks() -> None:
    assert tapped_blocks(12) == (2, 5, 8, 11)
    assert tapped_blocks(4) == (0, 1, 2, 3)
    assert tapped_blocks(2) == (0, 0, 1, 1)
    head = UperNet(32, 5, 8).eval()
    assert head(torch.randn(2, 128, 3, 5)).shape == (2, 5, 12, 20)
    assert head(torch.randn(2, 128, 1, 1)).shape[:2] == (2, 5)
    model = Segmenter(small_encoder(), SegmentationConfig(data=Path("unused"), head="upernet", channels=8), 3).eval()
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(1, 3, 16, 16)
    assert model(images).shape == (1, 3, 16, 16)
    blocks = model.encoder.encoder.last_layers(images, len(model.encoder.encoder.blocks))
    for part, block in zip(seen[0].chunk(4, 1), model.blocks, strict=True):
        torch.testing.assert_close(part.flatten(2).transpose(1, 2), blocks[block])


def test_pooled_context_reaches_every_pixel() -> None:
    """A change in one corner changes the opposite corner, which 3 x 3 convolutions alone would not do."""
    context = PooledContext(8).eval()
    maps = torch.randn(1, 8, 12, 12)
    moved = maps.clone()
    moved[:, :, 0, 0] += 5
    with torch.inference_mode():
        change = (context(moved) - context(maps))[..., -1, -1]
    assert float(change.abs().max()) > 1e-4


def broken(scenes: Path, what: str) -> SegmentationConfig:
    mask = scenes / "masks" / "train" / "00.png"
    keys: dict[str, object] = {"data": scenes}
    match what:
        case "nothing":
            keys["data"] = scenes / "missing"
        case "no mask":
            mask.unlink()
        case "size":
            Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(mask)
        case "colours":
            Image.fromarray(np.zeros((36, 28, 3), dtype=np.uint8)).save(mask)
        case "text":
            mask.write_text("no picture")
        case "bomb":
            header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
            parts = (header, b"IDAT" + zlib.compress(b"\0"))
            chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
            mask.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
        case "link":
            image = scenes / "images" / "train" / "00.png"
            image.unlink()
            image.symlink_to("gone.png")
        case "range":
            keys["classes"] = 2
        case "unseen":
            for path in (scenes / "masks" / "train").iterdir():
                labels = np.array(Image.open(path))
                Image.fromarray(np.where(labels == 2, 0, labels).astype(np.uint8)).save(path)
        case "unlabelled":
            for path in (scenes / "masks").rglob("*.png"):
                Image.fromarray(np.full((36, 28), 255, dtype=np.uint8)).save(path)
        case "window":
            keys["window"] = 18
    return SegmentationConfig.model_validate(keys | {"epochs": 1, "batch_size": 12})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"train_scales": (1000.0, 2000.0)},
            "train_scales: an image of 28 x 36 .* one of 56000 x 72000, and 178956970",
        ),
        ({"scales": (1.0, 500.0)}, "scales: an image of 28 x 36 pixels would become one of 14000 x 18000"),
        ({"shorter_side": 10_000}, "train_scales: an image of 28 x 36 pixels would become one of 20000 x 25714.3"),
        ({"scales": (1e308,), "shorter_side": 28}, "scales: .* would become one of inf x inf"),
    ],
)
def test_sizes_that_no_memory_holds_are_refused(scenes: Path, keys: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_segmentation(SegmentationConfig.model_validate({"data": scenes} | keys), DATA)


def test_files_tell_images_from_others_of_the_same_names(scenes: Path) -> None:
    before = open_segmentation_data(scenes, None, 255, None).fingerprint
    assert open_segmentation_data(scenes, None, 255, None).fingerprint == before
    Image.new("RGB", (28, 36)).save(scenes / "images" / "test" / "01.png")
    assert open_segmentation_data(scenes, None, 255, None).fingerprint != before


def test_names_that_are_no_text_are_names(scenes: Path) -> None:
    for folder in ("images", "masks"):
        path = scenes / folder / "train" / "00.png"
        path.rename(path.with_name(os.fsdecode(b"\xff\xfe 0.png")))
    assert len(open_segmentation_data(scenes, None, 255, None).train) == 12


@pytest.mark.parametrize(
    ("keys", "message"), [({}, "9 x 10 pixels, its image 28 x 36"), ({"classes": 3}, "02.png has the label 3, but")]
)
def test_masks_that_are_only_tested_on_are_refused_before_anything_is_trained(
    scenes: Path, keys: dict[str, object], message: str
) -> None:
    labels = np.full((36, 28) if keys else (10, 9), 3 if keys else 0, dtype=np.uint8)
    Image.fromarray(labels).save(scenes / "masks" / "test" / "02.png")
    with pytest.raises(InputError, match=message):
        open_segmentation(SegmentationConfig.model_validate({"data": scenes} | keys), DATA)


def test_test_images_that_are_cut_are_refused_before_anything_is_trained(scenes: Path) -> None:
    """Their headers are whole, so that nothing but decoding tells."""
    path = scenes / "images" / "test" / "02.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"02\.png cannot be read: .*; replace or remove it and its mask"):
        open_segmentation_data(scenes, None, 255, None)


def test_test_masks_without_any_label_are_refused_before_anything_is_trained(scenes: Path) -> None:
    for path in (scenes / "masks" / "test").iterdir():
        Image.fromarray(np.full((36, 28), 255, dtype=np.uint8)).save(path)
    with pytest.raises(InputError, match=r"no test mask in .* holds a label but 255; there is nothing to score"):
        open_segmentation_data(scenes, None, 255, None)


def test_images_that_are_turned_by_their_exif_fit_their_masks(scenes: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    path = scenes / "images" / "test" / "02.png"
    Image.new("RGB", (36, 28)).save(path, exif=turned)
    data = open_segmentation_data(scenes, None, 255, None)
    assert data.load(data.test[2])[0].size == (28, 36)


def test_what_systems_leave_beside_images_is_none(scenes: Path) -> None:
    (scenes / "images" / "train" / "._00.png").write_bytes(b"\0")
    (scenes / "images" / "train" / "@eaDir" / "00.png").mkdir(parents=True)
    (scenes / "images" / "train" / "@eaDir" / "00.png" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(b"\0")
    assert len(open_segmentation_data(scenes, None, 255, None).train) == 12


def test_test_images_without_masks_leave_those_of_val(scenes: Path) -> None:
    (scenes / "masks" / "test").rename(scenes / "masks" / "val")
    shutil.copytree(scenes / "images" / "test", scenes / "images" / "val")
    assert {pair.image.parent.name for pair in open_segmentation_data(scenes, None, 255, None).test} == {"val"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "has no images with masks; it needs images/train"),
        ("no mask", "1 of the 12 images in .* have no mask, the first is 00.png"),
        ("size", "10 x 10 pixels, its image 28 x 36; masks must have the size of their image"),
        ("colours", "is a RGB image; masks hold one number a pixel"),
        ("text", "cannot be read as a mask"),
        ("bomb", "cannot be read as a mask: Image size .400000000 pixels. exceeds limit"),
        ("link", "00.png cannot be found: No such file or directory; replace or remove it"),
        ("range", "has the label 2, but there are 2 classes, from 0 to 1"),
        ("unseen", "no training mask in .* holds label 2, which test masks hold"),
        ("unlabelled", "holds a label but 255; there is nothing to learn"),
        ("window", "cannot be cut into patches of 4"),
    ],
)
def test_unusable_images_are_refused(scenes: Path, what: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_segmentation(broken(scenes, what), DATA).measure(small_encoder(), Work())
