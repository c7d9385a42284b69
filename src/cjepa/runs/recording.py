"""While a run trains: what its report shows is kept at every evaluation, and the page is rewritten now and then."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from cjepa.build import build_model, build_stream, choose_device, find_checkpoint, start_weights
from cjepa.config import RunConfig
from cjepa.data import EvaluationImages, ImageSource, TrainingStream, UnreadableImageError, open_source
from cjepa.evaluation.monitor import Monitor, Seen
from cjepa.evaluation.representation import dimension_std, singular_values
from cjepa.models import Model
from cjepa.models.attention import attention_received
from cjepa.models.kernels import precision_of_reading
from cjepa.models.pretrained import normalise
from cjepa.models.vit import VisionTransformer
from cjepa.runs.report import REPORT, TIMING, stop_refreshing, write_live_report
from cjepa.runs.snapshots import SnapshotStore, most_similar
from cjepa.runs.waiting import Waiting
from cjepa.training.rows import RowLog, read_rows
from cjepa.visualization.report.material import Pairs, Samples, Snapshot

_log = logging.getLogger(__name__)

EXAMPLES, COMPARED, CROPS, PAIRS = 8, 400, 16, 12
"""Most images with patch features, images whose embeddings are kept, training crops, and pairs of similar images."""
THUMBNAIL = 48
"""Longer side of a compared image, in pixels."""
TICK = 5.0
"""Seconds between two rows of timing.jsonl; one more at every evaluation."""


class Recorder:
    """A writer of metrics that keeps what they do not say: the hours, and snapshots of the representation.

    The clock is not a part of metrics.jsonl, which is the same for a run that was stopped and one that was not.
    What fails here costs a picture and a warning, never the run.
    """

    def __init__(
        self, run: Path, config: RunConfig, model: Model, monitor: Monitor, waiting: Waiting, last: int
    ) -> None:
        """last: the step that the run continues after, -1 or 0 from the start."""
        self.run = run
        self.config = config
        self.model = model
        self.monitor = monitor
        self.store = SnapshotStore(run / REPORT)
        self.store.remove_after(last)
        self.clock = _Clock(run / TIMING, waiting, last)
        self.page = _Budget(config.logging.report_share)

    def write(self, step: int, split: str, values: Mapping[str, int | float]) -> None:  # noqa: ARG002
        """Note the time; after an evaluation also keep a snapshot and rewrite the page, if that is affordable."""
        self._try(TIMING, lambda: self.clock.note(step, at_once=split == "evaluation"))
        if split == "evaluation":
            self._try("snapshot", lambda: keep_snapshot(self.store, self.config, self.model, self.monitor, step))
            if self.page.affordable():
                with self.page:
                    self._try("report", lambda: write_live_report(self.run))

    def flush(self) -> None:
        """Bring the times to the disk."""
        self._try(TIMING, self.clock.rows.sync)

    def close(self) -> None:
        """The page that was written last stays, but is not read again and again."""
        self._try("report", lambda: stop_refreshing(self.run))

    def _try(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # a full disk, a font, a library's fault: hours of training are worth more
            _log.warning("%s not written (%s: %s); training goes on", what, type(error).__name__, error)
            _log.debug("its traceback", exc_info=error)


class _Clock:
    """timing.jsonl: seconds of training until a step, over all processes that the run was continued in.

    waited: how many of them went by while the training waited for images.
    """

    def __init__(self, path: Path, waiting: Waiting, last: int) -> None:
        self.rows = RowLog(path)
        self.rows.truncate_after(last)
        self.waiting = waiting
        earlier = read_rows(path)[-1:] if path.exists() else []
        self._before, self._waited_before = (
            float(earlier[0].get(name, 0.0)) if earlier else 0.0 for name in ("seconds", "waited")
        )
        self._start = self._noted = monotonic()

    def note(self, step: int, at_once: bool) -> None:
        """Append a row, at most every TICK seconds unless at once; StorageError when it cannot be written."""
        now = monotonic()
        if at_once or now - self._noted >= TICK:
            self._noted = now
            seconds, waited = self._before + now - self._start, self._waited_before + self.waiting.seconds
            self.rows.append({"step": step, "seconds": round(seconds, 3), "waited": round(waited, 3)})


class _Budget:
    """Work that may take a share of the time that passes; the first time is given, and is paid off before the next."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.spent = self.largest = 0.0
        self._start = monotonic()
        self._began = 0.0

    def affordable(self) -> bool:
        """Whether the longest time it took so far fits once more."""
        return self.share > 0 and self.spent + self.largest <= self.share * (monotonic() - self._start)

    def __enter__(self) -> None:
        self._began = monotonic()

    def __exit__(self, *_: object) -> None:
        took = monotonic() - self._began
        self.spent, self.largest = self.spent + took, max(self.largest, took)


def keep_snapshot(store: SnapshotStore, config: RunConfig, model: Model, monitor: Monitor, step: int) -> None:
    """Keep what a model makes of the fixed images, which are chosen and kept first where they are not yet.

    Where the run went on with other images, what was kept of the earlier ones is forgotten.
    """
    samples = store.load_samples()
    if samples is not None and samples.example_names != _example_names(monitor):
        _log.warning("report: the images are others than before, so its pictures begin anew")
        store.remove_after(-1)
        samples = None
    if samples is None:
        samples = choose_samples(config, monitor)
        store.save_samples(samples)
    store.save(take_snapshot(config, model, monitor, samples, step))


def choose_samples(config: RunConfig, monitor: Monitor) -> Samples:
    """The fixed images of a run, evenly from those that it is measured on, and crops of its first batch."""
    source = monitor.labelled_test()
    images = EvaluationImages(source, config.data)
    shown = _examples(source)
    compared = evenly(len(source), COMPARED)
    return Samples(
        examples=torch.stack([images[index] for index in shown.tolist()]),
        example_names=_example_names(monitor),
        compared=torch.stack([_small(images[index]) for index in compared.tolist()]),
        labels=torch.from_numpy(source.labels[compared.numpy()]),
        crops=first_crops(monitor.stream),
        sizes=torch.tensor([_size(source, index) for index in compared.tolist()], dtype=torch.int64),
    )


def _examples(source: ImageSource) -> Int[Tensor, "n"]:
    return evenly(len(source), EXAMPLES)


def _example_names(monitor: Monitor) -> tuple[str, ...]:
    source = monitor.labelled_test()
    return tuple(source.names[index] for index in _examples(source).tolist())


def first_crops(stream: TrainingStream) -> UInt8[Tensor, "c 3 H W"]:
    """Training crops of the first slots of a run's first step."""
    slots = min(CROPS, stream.batch_size)
    part = TrainingStream(stream.source, stream.config, stream.sampler, stream.batch_size, stream.seed, slots=slots)
    return part[0].images


@torch.no_grad()
def take_snapshot(config: RunConfig, model: Model, monitor: Monitor, samples: Samples, step: int) -> Snapshot:
    """What a model makes of the fixed images; uses what the monitor's last measurement computed."""
    assert monitor.seen is not None, "a snapshot is taken after a measurement"
    seen = monitor.seen
    patches, attention_target = _inspect(model.target_encoder, samples.examples, config)
    _, attention_context = _inspect(model.encoder, samples.examples, config)
    return Snapshot(
        step=step,
        patches=patches,
        attention_target=attention_target,
        attention_context=attention_context,
        embeddings=seen.test[evenly(len(seen.test), COMPARED)],
        singular_values=singular_values(seen.test).float(),
        deviations=dimension_std(seen.test).float(),
        errors=seen.errors,
        pairs=_pairs(config, monitor, seen),
    )


def evenly(count: int, most: int) -> Int[Tensor, "k"]:
    """At most so many of `count` indices, evenly from the first to the last."""
    return torch.linspace(0, count - 1, min(most, count)).round().long()


def _inspect(
    encoder: VisionTransformer, images: UInt8[Tensor, "n 3 H W"], config: RunConfig
) -> tuple[Float[Tensor, "n N D"], Float[Tensor, "n N"]]:
    """Patch features and attention received, image by image: the weights of all at once may not fit."""
    device = encoder.patch_projection.weight.device  # where shards were put together it is not the monitor's
    found = [
        encoder.with_attention(normalise(image[None].to(device), config.data.mean, config.data.std)) for image in images
    ]
    patches = torch.cat([features for features, _ in found]).float().cpu()
    return patches, torch.cat([attention_received(weights) for _, weights in found]).cpu()


def _pairs(config: RunConfig, monitor: Monitor, seen: Seen) -> Pairs:
    """The most similar images among those that the monitor embeds, training and test images together."""
    test = monitor.labelled_test()
    sources = [test] if seen.train is None or monitor.labelled is None else [monitor.labelled.train, test]
    embeddings = (
        seen.test if len(sources) == 1 else torch.cat([value for value in (seen.train, seen.test) if value is not None])
    )
    similarity, indices = most_similar(embeddings, PAIRS)
    places = [(source, index) for source in sources for index in range(len(source))]
    chosen = [[places[index] for index in pair] for pair in indices.tolist()]
    pictures = [[_small(EvaluationImages(source, config.data)[index]) for source, index in pair] for pair in chosen]
    height, width = _small_size(config.data.size)
    return Pairs(
        similarity,
        torch.stack([torch.stack(pair) for pair in pictures])
        if pictures
        else torch.empty(0, 2, 3, height, width).byte(),
        tuple((first[0].names[first[1]], second[0].names[second[1]]) for first, second in chosen),
        len(embeddings),
    )


def _small_size(size: tuple[int, int]) -> tuple[int, int]:
    shrink = min(THUMBNAIL / max(size), 1.0)
    return max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1)


def _small(image: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 h w"]:
    height, width = _small_size((image.shape[1], image.shape[2]))
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    small = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    return torch.from_numpy(small.transpose(2, 0, 1).copy())


def _size(source: ImageSource, index: int) -> tuple[int, int]:
    """Height and width of an image's file; 0, 0 where it cannot be read."""
    try:
        image = source.load(index)
    except UnreadableImageError:
        return 0, 0
    return image.height, image.width


def record_checkpoints(run: Path, config: RunConfig) -> None:
    """Snapshots of a run that kept none: of its start and of its last checkpoint.

    Raises InputError without a checkpoint, without its images or without the weights that it began with, if any.
    """
    checkpoint = find_checkpoint(run, "last")
    device = choose_device("auto")
    splits = open_source(config.data, config.seed)
    stream = build_stream(config, splits)
    precision = precision_of_reading(config.training.precision, device)
    monitor = Monitor(config.monitor, config.data, splits, stream, device, precision)
    model, start = build_model(config), start_weights(config)
    if start is not None:
        model.encoder.load_state_dict(start.context)
        model.target_encoder.load_state_dict(start.target)
    model = model.to(device)
    store = SnapshotStore(run / REPORT)
    for step in sorted({0, checkpoint.step}):
        if step:
            for part in (*model.learned, "target_encoder"):
                model.get_submodule(part).load_state_dict(checkpoint.tensors(part))
        monitor.measure(model)
        keep_snapshot(store, config, model, monitor, step)
