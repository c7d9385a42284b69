"""Video object segmentation by propagating the first mask with frozen patch features (Jabri et al., 2020; DINO)."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

from cjepa.data import MOST_SIDE, DataConfig
from cjepa.evaluation.davis import Sequence, open_davis
from cjepa.evaluation.davis_scores import VOID, object_scores, summary
from cjepa.evaluation.fingerprint import fingerprint_of
from cjepa.evaluation.task import EncoderTask, Values
from cjepa.evaluation.work import Kept, Work
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.types import Part

FIRST_MASK = "first mask kept"
_QUERIES = 1024  # patches whose neighbours are looked for at once


class VideoConfig(Part):
    """The first mask of a video is carried from frame to frame by the nearest patches of earlier frames."""

    name: Literal["video"] = "video"
    """Label propagation on DAVIS 2017."""
    data: Path
    """DAVIS's folder: ImageSets/2017, JPEGImages/480p and Annotations/480p."""
    split: str = "val"
    """Which list of ImageSets/2017 names the sequences."""
    resolution: str = "480p"
    """Which folder of JPEGImages and Annotations is read."""
    shorter_side: int | None = Field(480, ge=16, le=MOST_SIDE)
    """Pixels of the frames' shorter side while they are looked at, rounded to whole patches; null for their own."""
    context: int = Field(7, ge=0)
    """Earlier frames that are looked at besides the first one."""
    neighbours: int = Field(5, ge=1)
    """Nearest patches of all those frames that a patch takes its label from."""
    radius: int = Field(12, ge=1)
    """Patches further away than this, in rows or columns, are not looked at."""
    temperature: float = Field(0.1, gt=0)
    """A neighbour of cosine similarity s counts with the weight exp(s / temperature)."""


@dataclass(frozen=True)
class Seen:
    """A frame that labels come from: its patches, of length one, and the share of each object in them."""

    features: Float[Tensor, "N D"]
    shares: Float[Tensor, "N C"]


@dataclass(frozen=True)
class VideoTask(EncoderTask):
    """Sequences, and how masks are propagated."""

    config: VideoConfig
    sequences: tuple[Sequence, ...]

    def protocol(self) -> dict[str, Any]:
        """What decides the scores besides the keys."""
        frames = sum(len(sequence.frames) for sequence in self.sequences)
        files = (path for sequence in self.sequences for path in (*sequence.frames, *sequence.masks))
        return {"sequences": len(self.sequences), "frames": frames, "images": fingerprint_of(files)}

    def baselines(self) -> tuple[str, ...]:
        """A mask that does not move."""
        return (FIRST_MASK,)

    def measure_baseline(self, name: str, _work: Work) -> Values:
        """Scores of the first mask in every frame."""
        assert name == FIRST_MASK, name
        truths = (sequence.annotations() for sequence in self.sequences)
        return summary([object_scores(truth, np.repeat(first_mask(truth)[None], len(truth), 0)) for truth in truths])

    def measure(self, encoder: PretrainedEncoder, work: Work) -> Values:
        """J and F with recall and decay, and their mean; continues after the last whole sequence."""
        encoder = encoder.to(work.device)
        kept = work.keeper.newest(())
        done: list[Any] = list(kept.state["scores"]) if kept is not None else []
        frames = [len(sequence.frames) for sequence in self.sequences]
        with torch.inference_mode(), work.progress("frame", sum(frames)) as line:
            for number, sequence in enumerate(self.sequences[len(done) :], start=len(done)):
                truth = sequence.annotations()
                found = self._propagate(encoder, sequence, first_mask(truth), work, line_of(line, sum(frames[:number])))
                done.append([part.tolist() for part in object_scores(truth, found)])
                work.keeper.save(Kept(len(done), {}, {"scores": done}))
        return summary([(np.array(region), np.array(contour)) for region, contour in done])

    def _propagate(
        self, encoder: PretrainedEncoder, sequence: Sequence, first: UInt8[np.ndarray, "H W"], work: Work, tell: Any
    ) -> UInt8[np.ndarray, "T H W"]:
        config = self.config
        features, grid = self._features(encoder, sequence.frame(0), work)
        start = Seen(features, patch_shares(first, grid).to(work.device))
        near = neighbourhood(grid, config.radius).to(work.device)
        recent: deque[Seen] = deque(maxlen=config.context)
        masks = [first]
        for index in range(1, len(sequence.frames)):
            features, _ = self._features(encoder, sequence.frame(index), work)
            shares = propagated(features, [start, *recent], near, config.neighbours, config.temperature)
            masks.append(hard_mask(shares, grid, first.shape))
            recent.append(Seen(features, shares))
            tell(index + 1)
        return np.stack(masks)

    def _features(
        self, encoder: PretrainedEncoder, image: Image.Image, work: Work
    ) -> tuple[Float[Tensor, "N D"], tuple[int, int]]:
        patch = encoder.patch_size
        unit = 1.0 if self.config.shorter_side is None else self.config.shorter_side / min(image.size)
        grid = (max(1, round(image.height * unit / patch)), max(1, round(image.width * unit / patch)))
        resized = image.resize((grid[1] * patch, grid[0] * patch), Image.Resampling.BICUBIC, reducing_gap=3.0)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].to(work.device)
        with work.autocast():
            patches = encoder(normalise(pixels, encoder.mean, encoder.std))
        return normalize(patches[0].float(), dim=1), grid


def line_of(line: Any, before: int) -> Any:
    """Reports frames of a sequence as frames of all."""
    return lambda frames: line.update(before + frames, {}, 1)


def open_video(config: VideoConfig, _data: DataConfig) -> VideoTask:
    """The task with its sequences."""
    return VideoTask(config, open_davis(config.data.expanduser(), config.split, config.resolution))


def first_mask(truth: UInt8[np.ndarray, "T H W"]) -> UInt8[np.ndarray, "H W"]:
    """What is given: the objects of the first frame; pixels that are not scored count as ground."""
    return np.where(truth[0] == VOID, 0, truth[0]).astype(np.uint8)


def patch_shares(mask: UInt8[np.ndarray, "H W"], grid: tuple[int, int]) -> Float[Tensor, "N C"]:
    """Whose patch each is: the mask at the size of the grid, to the nearest pixel as in DINO, one column an object."""
    small = np.asarray(Image.fromarray(mask).resize((grid[1], grid[0]), Image.Resampling.NEAREST))
    return one_hot(torch.from_numpy(small.astype(np.int64)).flatten(), int(mask.max()) + 1).float()


def neighbourhood(grid: tuple[int, int], radius: int) -> Bool[Tensor, "N N"]:
    """Which patches lie within the radius of each other, in rows and in columns."""
    rows, columns = torch.arange(grid[0]).repeat_interleave(grid[1]), torch.arange(grid[1]).repeat(grid[0])
    return ((rows[:, None] - rows).abs() <= radius) & ((columns[:, None] - columns).abs() <= radius)


def propagated(
    features: Float[Tensor, "N D"], seen: list[Seen], near: Bool[Tensor, "N N"], neighbours: int, temperature: float
) -> Float[Tensor, "N C"]:
    """Shares of each object in the patches of a frame: weighted mean over the nearest patches of the seen frames."""
    keys, shares = torch.cat([each.features for each in seen]), torch.cat([each.shares for each in seen])
    parts = []
    for first in range(0, len(features), _QUERIES):
        rows = slice(first, first + _QUERIES)
        similarity = (features[rows] @ keys.T) / temperature
        similarity = similarity.masked_fill(~near[rows].repeat(1, len(seen)), -torch.inf)
        weight, index = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
        parts.append((weight.softmax(1)[:, :, None] * shares[index]).sum(1))
    return torch.cat(parts)


def hard_mask(shares: Float[Tensor, "N C"], grid: tuple[int, int], size: tuple[int, ...]) -> UInt8[np.ndarray, "H W"]:
    """The object with the largest share at each pixel, shares first stretched to [0, 1] over the frame as in DINO."""
    maps = shares.T.unflatten(1, grid)[None]
    maps = interpolate(maps, (size[0], size[1]), mode="bilinear")[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    stretched = torch.where(high > 0, (maps - low) / (high - low).clamp(min=1e-12), maps)
    mask: np.ndarray = stretched.argmax(0).cpu().numpy().astype(np.uint8)
    return mask
