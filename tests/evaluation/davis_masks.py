"""Masks in DAVIS's layout, and what the public davis2017-evaluation (BSD-3-Clause) says of them.

    python -m tests.evaluation.davis_masks CHECKOUT     needs opencv, scikit-image and tqdm

draws the masks, runs the checkout's own `DAVISEvaluation` on them, and writes davis_masks.npz and davis_scores.json
beside this file, which the tests read, so that they need neither the checkout nor opencv. The stored scores are those
of its commit ac7c43fca936f9722837b7fbd337d284ba37004b, semi-supervised task.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
MASKS, SCORES = HERE / "davis_masks.npz", HERE / "davis_scores.json"
HEIGHT, WIDTH = 96, 160
SEQUENCES = (("drift", 24, 2, False), ("crowd", 13, 4, False), ("void", 10, 2, True), ("short", 3, 1, False))
"""Name, frames, objects, and whether some annotations have pixels of 255."""


def shapes(seed: int, frames: int, objects: int, shift: float, void: bool = False) -> np.ndarray:
    """Lobed ellipses and rectangles that move, overlap and leave the frame; the last one is gone for a while."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    places = random.uniform([10, 15, 6, 6], [HEIGHT - 10, WIDTH - 15, 22, 30], (objects, 4))
    speeds = random.uniform(-3.5, 3.5, (objects, 2))
    masks = np.zeros((frames, HEIGHT, WIDTH), dtype=np.uint8)
    for frame in range(frames):
        for number in range(objects):
            if frame and number == objects - 1 and frames // 3 <= frame < frames // 2:
                continue
            row, column = places[number, :2] + speeds[number] * frame + shift * random.normal(0, 1.6, 2)
            down, across = places[number, 2:] * (1 + shift * random.normal(0, 0.08))
            lobes = 1 + 0.18 * np.sin(3 * np.arctan2(y - row, x - column) + frame / 4 + number)
            ellipse = ((y - row) / down) ** 2 + ((x - column) / across) ** 2 <= lobes
            rectangle = (abs(y - row) <= down) & (abs(x - column) <= across)
            masks[frame][rectangle if number % 2 else ellipse] = number + 1
        if void and frame % 3 == 1:
            masks[frame, 30:44, 50:90] = 255
    return masks


def drawn() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Truth and what a bad tracker found, by sequence: it shakes, loses an object, and stops following."""
    sequences = {}
    for seed, (name, frames, objects, void) in enumerate(SEQUENCES):
        found = shapes(seed, frames, objects, 1)
        if name == "crowd":
            found[6:][found[6:] == 2] = 0
            found[4] = found[3]
        if name == "drift":
            found[15:] = found[15]
        sequences[name] = shapes(seed, frames, objects, 0, void), found
    return sequences


def stored() -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """The masks, and the scores that the public evaluation gave them: shares, not percent."""
    arrays = np.load(MASKS)
    sequences = {name: (arrays[f"{name}_truth"], arrays[f"{name}_found"]) for name, *_ in SEQUENCES}
    return sequences, json.loads(SCORES.read_text())


def scored(root: Path, sequences: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """J and F of every object: mean, recall and decay, by the public code."""
    from davis2017.evaluation import DAVISEvaluation  # type: ignore[import-not-found, unused-ignore]

    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(sequences) + "\n")
    for name, (truth, found) in sequences.items():
        folders = [root / part / name for part in ("JPEGImages/480p", "Annotations/480p", "found")]
        for folder in folders:
            folder.mkdir(parents=True)
        for frame in range(len(truth)):
            Image.new("RGB", (WIDTH, HEIGHT)).save(folders[0] / f"{frame:05d}.jpg")
            Image.fromarray(truth[frame]).save(folders[1] / f"{frame:05d}.png")
            Image.fromarray(found[frame]).save(folders[2] / f"{frame:05d}.png")
    public = DAVISEvaluation(str(root), "semi-supervised", "val").evaluate(str(root / "found"))
    return {
        f"{part}_{name}": [float(value) for value in public[part][letter]]
        for part in ("J", "F")
        for name, letter in (("mean", "M"), ("recall", "R"), ("decay", "D"))
    }


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    sequences = drawn()
    with tempfile.TemporaryDirectory() as folder:
        SCORES.write_text(json.dumps(scored(Path(folder), sequences), indent=1) + "\n")
    parts = {
        f"{name}_{part}": mask
        for name, pair in sequences.items()
        for part, mask in zip(("truth", "found"), pair, strict=True)
    }
    np.savez_compressed(MASKS, **parts)


if __name__ == "__main__":
    main()
