"""The pictures of a page: strips of images under maps of their patches, and montages."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool

from cjepa.types import Masks
from cjepa.visualization.attention import attention_colours, peak
from cjepa.visualization.masks import edges, patch_mask
from cjepa.visualization.montage import enlarged, map_montage, neighbour_montage, neighbours_of, strip, tiled
from cjepa.visualization.neighbours import agreement
from cjepa.visualization.patches import common_colours
from cjepa.visualization.report.embedding import exact, for_page, numbers, photograph
from cjepa.visualization.report.material import RunMaterial, Samples, Snapshot
from cjepa.visualization.similarity import as_bytes, coarser, images_within, patch_similarity

MOST_RUNS = 4
"""Runs whose representation is drawn."""
QUERIES, NEIGHBOURS = 8, 6
SIMILARITY_BUDGET = 2_000_000
"""Bytes for all matrices of patch similarities on a page."""
_HIDDEN = (128, 128, 128, 205)
_APART = 0.12
"""Patches that each block's outline is further inside than the one before."""


@dataclass(frozen=True)
class Overlay:
    """A map over a strip of images after a step: the address of a picture with one pixel for each patch."""

    step: int
    address: str


@dataclass(frozen=True)
class Strip:
    """A column of images: its name, a detail, its overlays over time, how strongly they cover, and what it shows."""

    name: str
    description: str
    overlays: Sequence[Overlay]
    opacity: float = 1.0
    details: Sequence[str] = field(default_factory=list)
    outlines: Sequence[Sequence[str]] = ()
    """For each image, for each block, an SVG path in patches."""

    def at(self, frames: Sequence[int]) -> list[int]:
        """For each step of a slider the latest overlay that is no later, or else the first."""
        steps = [overlay.step for overlay in self.overlays]
        return [max(sum(step <= frame for step in steps) - 1, 0) for frame in frames]


@dataclass(frozen=True)
class Montage:
    """A finished picture with its heading, its text alternative and a sentence about it."""

    name: str
    address: str
    description: str
    detail: str = ""


def attention_strips(runs: Sequence[RunMaterial]) -> list[Strip]:
    """Attention received in the last block: target encoders of all runs, then context encoders."""
    strips = []
    for which in ("target", "context"):
        for run in runs:
            received = [(each.step, _attention(each, which)) for each in run.snapshots]
            overlays = [Overlay(step, exact(strip(attention_colours(of_step, run.grid)))) for step, of_step in received]
            strips.append(
                Strip(
                    f"{run.name}, {which}",
                    f"attention received in the last block of the {which} encoder of {run.name}",
                    overlays,
                    opacity=0.65,
                    details=[f"peak {peak(of_step):.2f} × even" for _, of_step in received],
                )
            )
    return strips


def _attention(snapshot: Snapshot, which: str) -> torch.Tensor:
    return snapshot.attention_target if which == "target" else snapshot.attention_context


def colour_strips(runs: Sequence[RunMaterial]) -> list[Strip]:
    """Principal components of patch features as colours: one basis for all images and steps of a run, and one frame
    for all runs, which have snapshots of the same images."""
    features = [torch.cat([each.patches for each in run.snapshots]) for run in runs]
    coloured = common_colours(features, runs[0].grid, [_same_images(runs[0], run) for run in runs])
    strips = []
    for place, (run, colours) in enumerate(zip(runs, coloured, strict=True)):
        images = len(run.snapshots[0].patches)
        parts = [colours.pictures[start : start + images] for start in range(0, len(colours.pictures), images)]
        overlays = [Overlay(each.step, exact(strip(part))) for each, part in zip(run.snapshots, parts, strict=True)]
        text = f"first three principal components of the patch features of {run.name} as red, green and blue"
        alike = f"r {colours.agreement:.2f} with the first" if place else ""
        strips.append(Strip(run.name, text, overlays, details=[alike] * len(overlays) if alike else []))
    return strips


def _same_images(first: RunMaterial, other: RunMaterial) -> list[tuple[int, int]]:
    """Pictures of equal images at equal steps, and always those of the last snapshots."""
    images, places = len(first.snapshots[0].patches), {each.step: index for index, each in enumerate(first.snapshots)}
    pairs = {(places[each.step], index) for index, each in enumerate(other.snapshots) if each.step in places}
    pairs.add((len(first.snapshots) - 1, len(other.snapshots) - 1))
    return [(one * images + image, two * images + image) for one, two in sorted(pairs) for image in range(images)]


def mask_strips(masks: Masks, grid: tuple[int, int], images: int) -> list[Strip]:
    """What the context encoder sees of each image, and the blocks that are predicted."""
    count = min(images, len(masks.context))
    context = patch_mask(masks.context[:count, None], grid)[:, 0]
    targets = patch_mask(masks.targets[:count], grid)
    patches, blocks = grid[0] * grid[1], masks.targets.shape[1]
    outlines = [
        [_path(block, _APART * (number + 0.5)) for number, block in enumerate(of_image)] for of_image in targets
    ]
    seen, length = masks.context.shape[1], masks.targets.shape[2]
    return [
        Strip("context", f"the context: {seen} of {patches} patches", [Overlay(0, _hide(np.logical_not(context)))]),
        Strip(
            f"{blocks} targets",
            f"{blocks} target blocks of {length} patches, outlined",
            [Overlay(0, _hide(np.logical_not(targets.any(axis=1))))],
            outlines=outlines,
        ),
    ]


def _hide(hidden: Bool[np.ndarray, "n h w"]) -> str:
    return exact(strip(np.where(hidden[..., None], np.array(_HIDDEN), 0).astype(np.uint8)))


def _path(block: Bool[np.ndarray, "h w"], inset: float) -> str:
    lines = edges(block, min(inset, 0.45))
    return "".join(f"M{x1:.2f} {y1:.2f}L{x2:.2f} {y2:.2f}" for (x1, y1), (x2, y2) in lines)


def photograph_strip(samples: Samples) -> tuple[str, tuple[int, int]]:
    """The examples below each other, and height and width of one on the page."""
    shown = for_page(samples.examples)
    return photograph(strip(shown)), (shown.shape[1], shown.shape[2])


@dataclass(frozen=True)
class Similarities:
    """Patch similarities of one encoder: a matrix of bytes for each of some examples, in base64."""

    name: str
    matrices: Sequence[str]


def similarities(runs: Sequence[RunMaterial]) -> tuple[list[Similarities], tuple[int, int]]:
    """Of the last snapshot of each run, and of the first where it was taken before training; and their grid."""
    chosen = [(run, each) for run in runs for each in _ends(run.snapshots)]
    found, size = [], runs[0].grid
    for run, snapshot in chosen:
        features, size = coarser(snapshot.patches, run.grid)
        images = images_within(size, SIMILARITY_BUDGET // len(chosen))
        matrices = as_bytes(patch_similarity(features)[:images])
        when = "before training" if snapshot.step == 0 else f"step {snapshot.step}"
        found.append(Similarities(f"{run.name}, {when}", [numbers(matrix) for matrix in matrices]))
    return found, size


def _ends(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    first = [snapshots[0]] if snapshots[0].step == 0 and len(snapshots) > 1 else []
    return [snapshots[-1], *first]


def neighbour_pictures(runs: Sequence[RunMaterial]) -> list[Montage]:
    """Sample images and the images nearest to them, by the last snapshot of each run."""
    found = []
    for run in runs:
        samples, snapshot = run.samples, run.snapshots[-1]
        if samples is None or len(samples.compared) < 3:
            continue
        labels = samples.labels.numpy()
        queries = np.linspace(0, len(labels) - 1, min(QUERIES, len(labels))).round().astype(np.int64)
        others = neighbours_of(snapshot.embeddings, queries, NEIGHBOURS)
        same = agreement(labels[queries], labels[others])
        montage = neighbour_montage(samples.compared, queries, others, same)
        known = int((same >= 0).sum())
        detail = f"{int((same == 1).sum())} of {known} neighbours have the query's class" if known else ""
        text = f"{len(queries)} images, each with its {others.shape[1]} nearest neighbours by {run.name}. {detail}"
        found.append(Montage(f"{run.name}, step {snapshot.step}", photograph(montage), text, detail))
    return found


def map_pictures(runs: Sequence[RunMaterial]) -> list[Montage]:
    """The compared images where their embeddings lie, by the last snapshot of each run."""
    found = []
    for run in runs:
        if run.samples is None or len(run.samples.compared) < 3:
            continue
        snapshot = run.snapshots[-1]
        montage, shares = map_montage(snapshot.embeddings, run.samples.compared)
        detail = f"{100 * shares[0]:.0f} % and {100 * shares[1]:.0f} % of the variance"
        text = (
            f"{len(run.samples.compared)} images placed by the first two principal components of {run.name}: {detail}"
        )
        found.append(Montage(f"{run.name}, step {snapshot.step}", photograph(montage), text, detail))
    return found


def crops_picture(samples: Samples) -> Montage:
    """The first training crops."""
    shown = for_page(samples.crops)
    text = f"{len(shown)} random training crops of {shown.shape[1]} by {shown.shape[2]} pixels, as shown here"
    return Montage("Training crops", photograph(tiled(enlarged(shown, 96), 8)), text)


def pair_pictures(run: RunMaterial) -> list[Montage]:
    """The most similar images of a run, in pairs, with how much their pixels differ."""
    if not run.snapshots:
        return []
    pairs = run.snapshots[-1].pairs
    found = []
    for similarity, images, (first, second) in zip(pairs.similarity, pairs.images, pairs.names, strict=True):
        apart = float((images[0].float() - images[1].float()).abs().mean())
        detail = f"cosine {float(similarity):.4f}, " + (
            "equal pixels" if apart == 0 else f"pixels differ by {apart:.1f} of 255"
        )
        found.append(
            Montage(
                f"{first} | {second}", photograph(tiled(enlarged(for_page(images)), 2)), f"{first} and {second}", detail
            )
        )
    return found
