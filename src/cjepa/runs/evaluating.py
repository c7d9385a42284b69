"""`cjepa evaluate`: the encoder of a run beside its untrained start and features that nobody had to learn."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from cjepa.build import (
    When,
    Which,
    build_encoder,
    choose_device,
    find_checkpoint,
    read_config,
    untrained_encoder,
)
from cjepa.config import parse
from cjepa.data import DataConfig, FolderConfig
from cjepa.errors import InputError, StoppedEarly, StorageError, enough_memory
from cjepa.evaluation import Evaluation, open_task, protocol_of
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.monitor import MonitorConfig
from cjepa.evaluation.task import Task, Values
from cjepa.evaluation.work import Work
from cjepa.models.kernels import precision_of_reading
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.weights import Weights, holds_weights, open_weights
from cjepa.ranks import collect, from_first, is_first, joined, rank
from cjepa.runs.keeping import RunKeeper
from cjepa.runs.labelled_images import open_labelled
from cjepa.training.interruption import Interrupted, Interruption, stopping_at_once
from cjepa.training.progress import Progress
from cjepa.training.rows import RowLog, read_rows
from cjepa.types import Precision

_log = logging.getLogger(__name__)

EVALUATIONS = "evaluations.jsonl"
PATIENCE = timedelta(days=30)
"""How long ranks wait for the first one, which may train for days; should it die, torchrun ends them."""
WEIGHTS_SEED = 0
"""Of the random start that weights without a run are compared with, and of heads that are trained on them."""
_ADVICE = "the same command continues"
_SMALLER = "lower --batch-size, or the key batch_size of an evaluation that trains; what was measured is kept"
RAW_PIXELS, COLOUR_STATISTICS, UNTRAINED = "raw pixels", "colour statistics", "untrained"


@dataclass(frozen=True)
class Result:
    """One line of evaluations.jsonl: the values of one evaluation of one encoder, or of features without one.

    encoder: target, context, untrained, or what needs none: raw pixels, colour statistics, first mask kept.
    step: of the checkpoint, 0 without one.
    digest: of the encoder (`encoder_digest`), None for features without one.
    protocol: everything else that decides the values; only values of equal protocols compare.
    """

    step: int
    name: str
    encoder: str
    digest: str | None
    protocol: dict[str, Any]
    values: dict[str, float]


def encoder_digest(encoder: PretrainedEncoder) -> str:
    """What tells one encoder's results from another's that lies, or lay, in the same place: a sha256."""
    config = encoder.encoder.config
    parts = encoder.digest(), config.heads, config.position_scale, *encoder.mean, *encoder.std
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def evaluate_run(
    run: Path,
    evaluations: Sequence[Evaluation],
    *,
    which: Which = "target",
    checkpoint: When = "last",
    images: Path | None = None,
    device: str = "auto",
    comparisons: bool = True,
    heads: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> list[Result]:
    """Each evaluation of a run's encoder, after those of what it has to beat: baselines and the untrained encoder.

    Every result is a line of evaluations.jsonl in the run folder, or of FILE.evaluations.jsonl beside weights; what is
    there is not computed again, and what was interrupted continues. run: a run folder, or weights that
    cjepa.load_encoder opens. images: a folder of labelled images in place of those that the run was trained on, for
    evaluations that name no data of their own. comparisons: also what it has to beat. heads: as cjepa.load_encoder
    takes them. batch_size, workers: images per forward pass of a frozen encoder, and processes that load them, where
    not as the run has them. Raises InputError without a run, a checkpoint or usable images, NoValidCheckpointError when
    no checkpoint verifies, StoppedEarly at a signal, OutOfMemoryError where a batch is too large.
    """
    chosen = choose_device(device)
    with joined(chosen, PATIENCE), stopping_at_once(_ADVICE), enough_memory(_SMALLER):
        subject = _subject(run, which, checkpoint, images, heads)
        work = replace(
            subject.work,
            device=chosen,
            precision=from_first(lambda: precision_of_reading(subject.trained_in, chosen)),
            batch_size=batch_size or subject.work.batch_size,
            workers=subject.work.workers if workers is None else workers,
        )
        return _evaluate(subject, evaluations, work, comparisons)


@dataclass(frozen=True)
class _Subject:
    """An encoder to evaluate, and what its run, or its weights, say about how.

    name: target or context. trained_in: the precision, auto where that is not known. untrained: makes the random start
    of the same encoder. data: how its images are prepared. labelled: opens those that evaluations without data of
    their own are about. work: but for device and precision. results: the file where they are kept.
    """

    name: Which
    step: int
    trained: PretrainedEncoder
    trained_in: Literal["auto"] | Precision
    untrained: Callable[[], PretrainedEncoder]
    data: DataConfig
    labelled: Callable[[], LabelledImages]
    work: Work
    results: Path


def _subject(run: Path, which: Which, checkpoint: When, images: Path | None, heads: int | None) -> _Subject:
    results = results_path(run)
    if holds_weights(run):
        weights = open_weights(run, heads)
        data = _data_of(weights, run, images)
        untrained = partial(untrained_encoder, weights.config, weights.preparation, WEIGHTS_SEED)
        labelled = _refuse_without_images if images is None else partial(open_labelled, data, WEIGHTS_SEED)
        work = _work(data, MonitorConfig(), WEIGHTS_SEED, results.parent)
        encoder = PretrainedEncoder.of(weights, which)
        return _Subject(which, 0, encoder, "auto", untrained, data, labelled, work, results)
    config, used = read_config(run), find_checkpoint(run, checkpoint)
    data = config.data if images is None else config.data.model_copy(update={"source": FolderConfig(path=images)})
    work = _work(data, config.monitor, config.seed, results.parent)
    trained, untrained = build_encoder(config, used, which), partial(build_encoder, config, None)
    trained_in = config.training.precision
    labelled = partial(open_labelled, data, config.seed)
    return _Subject(which, used.step, trained, trained_in, untrained, data, labelled, work, results)


def _data_of(weights: Weights, path: Path, images: Path | None) -> DataConfig:
    """Labelled images prepared as the weights ask for it; of none the folder is never opened."""
    prepared = asdict(weights.preparation)
    try:
        return parse(DataConfig, {"source": {"name": "folder", "path": str(images or "none")}} | prepared)
    except InputError as error:
        raise InputError(f"{path} says how images are to be prepared, which cannot be done: {error}") from error


def _refuse_without_images() -> LabelledImages:
    raise InputError("weights do not say which images to evaluate on; name a folder of labelled ones with --images")


def _work(data: DataConfig, monitor: MonitorConfig, seed: int, scratch: Path) -> Work:
    return Work(
        batch_size=monitor.batch_size,
        workers=data.processes,
        patience=data.worker_timeout,
        seed=seed,
        progress=Progress,
        scratch=scratch,
    )


def _evaluate(subject: _Subject, evaluations: Sequence[Evaluation], work: Work, comparisons: bool) -> list[Result]:
    # Opened when the first evaluation asks, and once for all of them.
    labelled: Callable[[], LabelledImages] = cache(subject.labelled)
    tasks = [(evaluation, open_task(evaluation, subject.data, labelled)) for evaluation in evaluations]
    log = _ResultLog(subject.results)
    results = []
    with Interruption() as interruption:
        work = replace(
            work,
            promptly=partial(interruption.ending, _ADVICE),
            unbroken=interruption.later,
            stop=lambda: interruption.requested,
        )
        measured = _Measured(subject.results.parent, work, log, interruption)
        if comparisons:
            for name in dict.fromkeys(name for _, task in tasks for name in task.baselines()):
                results += measured.baseline(name, [pair for pair in tasks if name in pair[1].baselines()])
            results += measured.encoder(UNTRAINED, 0, subject.untrained(), tasks)
        results += measured.encoder(subject.name, subject.step, subject.trained, tasks)
    return results


def results_path(run: Path) -> Path:
    """Where the results are kept: in the folder of a run or of weights, beside a file of weights."""
    return run.with_name(f"{run.name}.{EVALUATIONS}") if run.is_file() else run / EVALUATIONS


@dataclass(frozen=True)
class _Measured:
    """Results that are known, and those that are computed now; each is kept as soon as it is there."""

    folder: Path
    work: Work
    log: "_ResultLog"
    interruption: Interruption

    def baseline(self, name: str, tasks: Sequence[tuple[Evaluation, Task]]) -> list[Result]:
        """What a function of the pixels reaches."""
        return [
            self._result(name, 0, None, evaluation, task, partial(task.measure_baseline, name))
            for evaluation, task in tasks
        ]

    def encoder(
        self, name: str, step: int, encoder: PretrainedEncoder, tasks: Sequence[tuple[Evaluation, Task]]
    ) -> list[Result]:
        """What an encoder reaches."""
        digest = encoder_digest(encoder)

        def measure(task: Task, work: Work) -> Values:
            return task.measure(encoder, work)

        return [
            self._result(name, step, digest, evaluation, task, partial(measure, task)) for evaluation, task in tasks
        ]

    def _result(
        self,
        encoder: str,
        step: int,
        digest: str | None,
        evaluation: Evaluation,
        task: Task,
        measure: Callable[[Work], Values],
    ) -> Result:
        protocol = protocol_of(evaluation, task, self.work.precision)
        asked = Result(step, evaluation.name, encoder, digest, protocol, {})
        _refuse_other_ranks(asked)
        known = from_first(lambda: self.log.find(asked))
        if known is not None:
            return known
        self._stop_together()
        keeper = RunKeeper(self.folder, asdict(asked))
        work = replace(self.work, keeper=keeper, progress=_titled(f"{evaluation.name}, {encoder}"))
        values = measure(work) if task.divided() else from_first(lambda: _alone(measure, work))
        result = replace(asked, values=values)
        if is_first():
            self.log.add(result)
            keeper.remove()
        return result

    def _stop_together(self) -> None:
        """A signal to a rank that waited for the others ends all of them here."""
        try:
            self.interruption.check()
        except Interrupted as stop:
            raise StoppedEarly(f"stopped by {stop}; {_ADVICE}") from None


def _alone(measure: Callable[[Work], Values], work: Work) -> Values:
    with work.promptly():
        return measure(work)


def _refuse_other_ranks(asked: Result) -> None:
    """What each rank is about to measure must be the same."""
    for number, other in enumerate(collect(asked)):
        if (other.step, other.digest) != (asked.step, asked.digest):
            raise InputError(
                f"rank {number} has other weights (step {other.step}) than rank {rank()} (step {asked.step}): the run "
                "went on meanwhile, or a machine has an older copy; evaluate again when all see the same checkpoint"
            )
        if other.protocol != asked.protocol:
            raise InputError(
                f"rank {number} sees other images than rank {rank()} (their names or sizes differ); give every machine "
                "the same ones"
            )


def _titled(title: str) -> Callable[[str, int], Progress]:
    return lambda description, total: Progress(f"{title}: {description}", total)


class _ResultLog:
    """evaluations.jsonl: what was measured before, and what is measured now."""

    def __init__(self, path: Path) -> None:
        self._rows = RowLog(path)
        rows = read_rows(path) if path.exists() else []
        self._results = [Result(**row) for row in rows if row.keys() == Result.__dataclass_fields__.keys()]

    def find(self, asked: Result) -> Result | None:
        """The last result that differs from this one in its values alone, if there is one."""
        return next((each for each in reversed(self._results) if replace(each, values=asked.values) == asked), None)

    def add(self, result: Result) -> None:
        """Append a line; a run folder that cannot be written must not cost the values."""
        self._results.append(result)
        try:
            self._rows.append(asdict(result))
        except (OSError, StorageError) as error:
            _log.warning("%s cannot be written (%s): the values are shown but not kept", self._rows.path, error)
