"""Video: DAVIS's measures against the public evaluation and a literal count, propagation, what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cjepa.data import DataConfig, FolderConfig
from cjepa.errors import InputError, StoppedEarly
from cjepa.evaluation.davis import open_davis
from cjepa.evaluation.davis_scores import (
    VOID,
    contour_accuracy,
    mean_recall_decay,
    object_scores,
    region_similarity,
    summary,
)
from cjepa.evaluation.video import FIRST_MASK, Seen, VideoConfig, VideoTask, neighbourhood, open_video, propagated
from cjepa.evaluation.work import Work
from cjepa.models import EncoderConfig, VisionTransformer
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.runs.keeping import RunKeeper
from tests.evaluation.davis_masks import stored
from tests.evaluation.labelled_colours import MEAN, STD, small_encoder

DATA = DataConfig(source=FolderConfig(path=Path("unused")), image_size=16)


# --- the measures---------


def slow_contour(mask: np.ndarray) -> list[tuple[int, int]]:
    height, width = mask.shape
    pixels = []
    for row in range(height):
        for column in range(width):
            others = [(row, column + 1), (row + 1, column), (row + 1, column + 1)]
            inside = [(min(r, height - 1), min(c, width - 1)) for r, c in others]
            if any(mask[place] != mask[row, column] for place in inside):
                pixels.append((row, column))
    return pixels


def slow_f(true: np.ndarray, taken: np.ndarray) -> float:
    reach = math.ceil(0.008 * math.sqrt(true.shape[0] ** 2 + true.shape[1] ** 2))
    contours = slow_contour(true), slow_contour(taken)
    if not contours[0] or not contours[1]:
        return 1.0 if contours[0] == contours[1] else 0.0
    shares = []
    for own, other in (contours, contours[::-1]):
        near = [any((a - c) ** 2 + (b - d) ** 2 <= reach**2 for c, d in other) for a, b in own]
        shares.append(sum(near) / len(near))
    return 0.0 if sum(shares) == 0 else 2 * shares[0] * shares[1] / sum(shares)


def blob(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Rectangles, now and then none."""
    random = np.random.default_rng(seed)
    mask = np.zeros(size, dtype=bool)
    for _ in range(random.integers(0, 3)):
        top, left = random.integers(0, size[0] - 2), random.integers(0, size[1] - 2)
        mask[top : top + random.integers(2, 9), left : left + random.integers(2, 9)] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), wide=st.sampled_from([14, 140]))
def test_j_and_f_equal_a_literal_count(seed: int, wide: int) -> None:
    """140 columns bring a tolerance of 2 pixels."""
    true, taken = blob(seed, (12, wide)), blob(seed + 1, (12, wide))
    union = sum(bool(a or b) for a, b in zip(true.flat, taken.flat, strict=True))
    both = sum(bool(a and b) for a, b in zip(true.flat, taken.flat, strict=True))
    assert region_similarity(true, taken) == pytest.approx(both / union if union else 1.0, abs=1e-12)
    assert contour_accuracy(true, taken) == pytest.approx(slow_f(true, taken), abs=1e-12)


def test_mean_recall_and_decay_of_known_series() -> None:
    values = np.array([1.0, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2, 0.0])
    mean, recall, decay = mean_recall_decay(values)
    assert mean == pytest.approx(4.2 / 9)
    assert recall == pytest.approx(4 / 9)  # 0.5 itself would not count
    assert decay == pytest.approx(np.mean([1.0, 0.8, 0.6]) - np.mean([0.2, 0.2, 0.0]))  # borders 0 2 4 6 8
    assert mean_recall_decay(np.array([0.5]))[1:] == (0.0, 0.0)


def test_scores_equal_the_public_davis_evaluation() -> None:
    """On stored masks that move, overlap, vanish, leave the frame and have void pixels: davis_masks.py."""
    masks, public = stored()
    scores = [object_scores(*(part.astype(np.int64) for part in pair)) for pair in masks.values()]
    for number, part in enumerate("JF"):
        found = [mean_recall_decay(row) for pair in scores for row in pair[number]]
        for column, name in enumerate(("mean", "recall", "decay")):
            assert [row[column] for row in found] == pytest.approx(public[f"{part}_{name}"], abs=1e-6)
    values = summary(scores)
    for name, each in public.items():
        assert values[name] / 100 == pytest.approx(np.mean(each), abs=1e-6)
    both = [*public["J_mean"], *public["F_mean"]]
    assert values["JF_mean"] / 100 == pytest.approx(np.mean(both), abs=1e-6)
    assert min(public["J_mean"]) < 0.5 < max(public["J_mean"]), "masks that tell good from bad"


def test_first_and_last_frames_are_not_scored_and_void_is_ground() -> None:
    truth = np.zeros((4, 10, 10), dtype=np.int64)
    truth[:, 2:6, 2:6] = 1
    truth[:, 6:9, 6:9] = 2
    found = truth.copy()
    found[0] = found[3] = 0
    region, contour = object_scores(truth, found)
    assert region.shape == contour.shape == (2, 2)
    assert (region == 1).all()
    assert (contour == 1).all()
    truth[1][truth[1] == 2] = VOID
    region, _ = object_scores(truth, found)
    assert region[0, 0] == 1
    assert region[1].tolist() == [0, 1]  # found where nothing is


def test_scores_are_averaged_over_objects_of_all_sequences() -> None:
    one = np.array([[1.0, 1.0, 1.0]]), np.array([[0.5, 0.5, 0.5]])
    two = np.array([[0.0] * 5, [0.4] * 5]), np.array([[1.0] * 5, [1.0] * 5])
    values = summary([one, two])
    assert values["J_mean"] == pytest.approx(100 * 1.4 / 3)
    assert values["F_mean"] == pytest.approx(100 * 2.5 / 3)
    assert values["JF_mean"] == pytest.approx((values["J_mean"] + values["F_mean"]) / 2)
    assert values["J_recall"] == pytest.approx(100 / 3)
    assert values["F_recall"] == pytest.approx(200 / 3)


# --- propagation ------------------------------------------------------------------------------------------------


def test_propagation_equals_a_literal_search() -> None:
    torch.manual_seed(0)
    grid, neighbours, temperature = (3, 5), 4, 0.3
    features = torch.nn.functional.normalize(torch.randn(3, 15, 8), dim=2)
    shares = torch.rand(2, 15, 3)
    seen = [Seen(features[index], shares[index]) for index in (0, 1)]
    result = propagated(features[2], seen, neighbourhood(grid, 1), neighbours, temperature)
    for patch in range(15):
        row, column = divmod(patch, 5)
        candidates = []
        for frame in (0, 1):
            for other in range(15):
                if max(abs(other // 5 - row), abs(other % 5 - column)) <= 1:
                    candidates.append((float(features[2, patch] @ features[frame, other]), frame, other))
        best = sorted(candidates, reverse=True)[:neighbours]
        weights = np.exp([similarity / temperature for similarity, _, _ in best])
        expected = sum(w * shares[f, o] for w, (_, f, o) in zip(weights / weights.sum(), best, strict=True))
        torch.testing.assert_close(result[patch], expected, atol=1e-5, rtol=1e-5)


def write_video(root: Path, name: str, frames: int = 6, step: int = 4) -> None:
    """Two textured squares of a photograph that move across another part of it, masks exact; 64 x 48."""
    from skimage.data import astronaut

    photograph = np.asarray(Image.fromarray(astronaut()).resize((192, 192)))
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "480p" / name).mkdir(parents=True)
    for index in range(frames):
        pixels, mask = photograph[100:148, 20:84].copy(), np.zeros((48, 64), dtype=np.uint8)
        for number, (top, left, source) in enumerate(((4, 2 + step * index, 30), (28, 44 - step * index, 90)), start=1):
            pixels[top : top + 16, left : left + 16] = photograph[20:36, source : source + 16][..., ::-1]
            mask[top : top + 16, left : left + 16] = number
        Image.fromarray(pixels).save(root / "JPEGImages" / "480p" / name / f"{index:05d}.jpg", quality=95)
        Image.fromarray(mask).save(root / "Annotations" / "480p" / name / f"{index:05d}.png")
    listing = root / "ImageSets" / "2017" / "val.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("a") as file:
        file.write(f"{name}\n")


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    write_video(tmp_path, "slow", step=2)
    write_video(tmp_path, "fast", step=4)
    return tmp_path


def looking_encoder() -> PretrainedEncoder:
    """Untrained, and without positions, so that what moves can be recognised."""
    config = EncoderConfig(
        width=48, depth=1, heads=2, patch_size=4, patch_projection="unit_variance", position_scale=0.0
    )
    transformer = VisionTransformer(config)
    transformer.initialise(torch.Generator().manual_seed(0))
    return PretrainedEncoder(transformer, (48, 64), MEAN, STD)


def task(davis: Path) -> VideoTask:
    return open_video(VideoConfig(data=davis, shorter_side=None, radius=4), DATA)


def test_frames_are_in_the_order_of_their_numbers_and_copies_of_macos_are_none(tmp_path: Path) -> None:
    write_video(tmp_path, "long", frames=11)
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        place = tmp_path / folder / "480p" / "long"
        for index in range(11):
            (place / f"{index:05d}.{suffix}").rename(place / f"frame-{index}.{suffix}")
        (place / f"._frame-0.{suffix}").write_bytes(b"\0")
    [sequence] = open_davis(tmp_path, "val", "480p")
    assert [path.stem for path in sequence.frames] == [f"frame-{index}" for index in range(11)]
    assert [path.stem for path in sequence.masks] == [f"frame-{index}" for index in range(11)]


def test_masks_follow_what_moves(davis: Path) -> None:
    values = task(davis).measure(looking_encoder(), Work())
    still = task(davis).measure_baseline(FIRST_MASK, Work())
    assert list(values) == ["JF_mean", "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"]
    assert values["JF_mean"] > still["JF_mean"] + 10
    protocol = task(davis).protocol()
    assert (protocol["sequences"], protocol["frames"]) == (2, 12)


def test_a_perfect_prediction_scores_100_and_a_constant_video_is_kept(davis: Path) -> None:
    for sequence in ("slow", "fast"):
        for folder in ("JPEGImages", "Annotations"):
            files = sorted((davis / folder / "480p" / sequence).iterdir())
            for file in files[1:]:
                file.write_bytes(files[0].read_bytes())
    for values in (task(davis).measure_baseline(FIRST_MASK, Work()), task(davis).measure(looking_encoder(), Work())):
        assert values["J_mean"] > 85  # masks pass through a grid of patches
        assert values["J_decay"] == pytest.approx(0, abs=1)
    assert task(davis).measure_baseline(FIRST_MASK, Work())["F_mean"] == 100


def stopped_in_the_second_call() -> Callable[..., Any]:
    propagate, calls = VideoTask._propagate, iter(range(2))

    def stopped(*arguments: Any) -> Any:
        if next(calls):
            raise StoppedEarly
        return propagate(*arguments)

    return stopped


def test_interrupted_it_continues_after_the_last_sequence(
    davis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = task(davis).measure(small_encoder(), Work())
    keeper = RunKeeper(tmp_path / "run", {})
    with monkeypatch.context() as patch:
        patch.setattr("cjepa.evaluation.video.VideoTask._propagate", stopped_in_the_second_call())
        with pytest.raises(StoppedEarly):
            task(davis).measure(small_encoder(), Work(keeper=keeper))
    for file in (davis / "JPEGImages" / "480p" / "slow").iterdir():
        file.write_bytes(b"not looked at again")
    assert [each.name for each in task(davis).sequences] == ["slow", "fast"]
    assert task(davis).measure(small_encoder(), Work(keeper=keeper)) == expected


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("listing", "val.txt does not exist; unpack DAVIS-2017-trainval"),
        ("empty", "names no sequence"),
        ("frames", "sequence slow has 2 frames"),
        ("mask", "1 of 6 frames have no mask"),
    ],
)
def test_missing_parts_are_refused(davis: Path, what: str, message: str) -> None:
    listing = davis / "ImageSets" / "2017" / "val.txt"
    match what:
        case "listing":
            listing.unlink()
        case "empty":
            listing.write_text("\n")
        case "frames":
            for file in sorted((davis / "JPEGImages" / "480p" / "slow").iterdir())[2:]:
                file.unlink()
        case "mask":
            (davis / "Annotations" / "480p" / "slow" / "00003.png").unlink()
    with pytest.raises(InputError, match=message):
        task(davis)


@pytest.mark.parametrize(
    ("value", "size", "frame", "message"),
    [
        (0, (48, 64), 0, "holds no object; the first mask says what is followed"),
        (9, (48, 64), 2, "a later mask has object 9, but the first one only 2"),
        (1, (20, 20), 2, "masks and frames differ in size"),
    ],
)
def test_unusable_masks_are_refused(davis: Path, value: int, size: tuple[int, int], frame: int, message: str) -> None:
    path = davis / "Annotations" / "480p" / "slow" / f"{frame:05d}.png"
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(path)
    with pytest.raises(InputError, match=message):
        task(davis).measure(small_encoder(), Work())


def test_frames_of_two_sizes_are_refused(davis: Path) -> None:
    Image.new("RGB", (64, 40)).save(davis / "JPEGImages" / "480p" / "slow" / "00002.jpg")
    with pytest.raises(InputError, match="masks and frames differ in size"):
        task(davis).measure(small_encoder(), Work())
