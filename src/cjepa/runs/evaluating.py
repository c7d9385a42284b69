"""`cjepa evaluate`: the encoder of a run beside its untrained start and features that nobody had to learn."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

from cjepa.build import When, Which, build_encoder, choose_device, find_checkpoint, read_config
from cjepa.config import RunConfig
from cjepa.data import DataConfig, FolderConfig
from cjepa.errors import InputError, StorageError
from cjepa.evaluation import Evaluation, open_task
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.task import Task, Values
from cjepa.evaluation.work import Work
from cjepa.models import ModelConfig
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.weights import Weights, holds_weights, open_weights
from cjepa.ranks import collect, from_first, is_first, joined, rank
from cjepa.runs.keeping import RunKeeper
from cjepa.runs.labelled_images import open_labelled
from cjepa.training.interruption import Interruption
from cjepa.training.progress import Progress
from cjepa.training.rows import RowLog, read_rows

_log = logging.getLogger(__name__)

EVALUATIONS = "evaluations.jsonl"
PATIENCE = timedelta(days=30)
"""How long ranks wait for the first one, which may train for days; should it die, torchrun ends them."""
RAW_PIXELS, COLOUR_STATISTICS, UNTRAINED = "raw pixels", "colour statistics", "untrained"


@dataclass(frozen=True)
class Result:
    """One line of evaluations.jsonl: the values of one evaluation of one encoder, or of features without one.

    encoder: target, context, untrained, raw pixels or colour statistics. step: of the checkpoint, 0 without one.
    protocol: everything else that decides the values; only values of equal protocols compare.
    """

    step: int
    name: str
    encoder: str
    protocol: dict[str, Any]
    values: dict[str, float]


def evaluate_run(
    run: Path,
    evaluations: Sequence[Evaluation],
    *,
    which: Which = "target",
    checkpoint: When = "last",
    images: Path | None = None,
    device: str = "auto",
    comparisons: bool = True,
) -> list[Result]:
    """Each evaluation of a run's encoder, after those of what it has to beat: baselines and the untrained encoder.

    Every result is a line of evaluations.jsonl in the run folder; what is there is not computed again, and what was
    interrupted continues. run: a run folder, or weights that cjepa.load_encoder opens. images: a folder of labelled
    images in place of those that the run was trained on, for evaluations that name no data of their own. comparisons:
    also what it has to beat. Raises InputError without a run, a checkpoint or usable images, NoValidCheckpointError
    when no checkpoint verifies, StoppedEarly at a signal.

    Started by torchrun, every rank calls it and returns the same: features are extracted in shares, and the rest is
    done by the first rank, which alone writes.
    """
    with joined(choose_device(device), PATIENCE):
        return _evaluate(run, evaluations, which, checkpoint, images, device, comparisons)


def _evaluate(
    run: Path,
    evaluations: Sequence[Evaluation],
    which: Which,
    checkpoint: When,
    images: Path | None,
    device: str,
    comparisons: bool,
) -> list[Result]:
    if holds_weights(run):
        weights = open_weights(run)
        config, step, trained = _config_of(weights, images), 0, PretrainedEncoder.of(weights, which)
    else:
        config, used = _with_images(read_config(run), images), find_checkpoint(run, checkpoint)
        step, trained = used.step, build_encoder(config, used, which)
    # Opened when the first evaluation asks, and once for all of them.
    labelled: Callable[[], LabelledImages] = cache(lambda: open_labelled(config))
    tasks = [(evaluation, open_task(evaluation, config.data, labelled)) for evaluation in evaluations]
    folder = run.parent if run.is_file() else run
    work = _work(config, device, folder)
    log = _ResultLog(results_path(run))
    results = []
    with Interruption() as interruption:
        measured = _Measured(folder, replace(work, stop=lambda: interruption.requested), log)
        if comparisons:
            for name in dict.fromkeys(name for _, task in tasks for name in task.baselines()):
                results += measured.baseline(name, [pair for pair in tasks if name in pair[1].baselines()])
            untrained = build_encoder(config, None)
            results += [measured.encoder(UNTRAINED, 0, *pair, lambda: untrained) for pair in tasks]
        results += [measured.encoder(which, step, *pair, lambda: trained) for pair in tasks]
    return results


def results_path(run: Path) -> Path:
    """Where the results are kept: in the folder of a run or of weights, beside a file of weights."""
    return run.with_name(f"{run.name}.{EVALUATIONS}") if run.is_file() else run / EVALUATIONS


def _config_of(weights: Weights, images: Path | None) -> RunConfig:
    """A run that would begin with such an encoder; its random start is what the weights have to beat."""
    if images is None:
        raise InputError("weights do not say which images to evaluate on; name a folder of labelled ones with --images")
    prepared = weights.preparation
    data = DataConfig(
        source=FolderConfig(path=images),
        image_size=prepared.image_size,
        mean=prepared.mean,
        std=prepared.std,
        evaluation_crop=prepared.evaluation_crop,
    )
    return RunConfig(data=data, model=ModelConfig(encoder=weights.config))


def _work(config: RunConfig, device: str, scratch: Path) -> Work:
    return Work(
        device=choose_device(device),
        precision=config.training.precision,
        batch_size=config.monitor.batch_size,
        workers=config.data.processes,
        seed=config.seed,
        progress=Progress,
        scratch=scratch,
    )


def _with_images(config: RunConfig, images: Path | None) -> RunConfig:
    if images is None:
        return config
    data = config.data.model_copy(update={"source": FolderConfig(path=images)})
    return config.model_copy(update={"data": data})


@dataclass(frozen=True)
class _Measured:
    """Results that are known, and those that are computed now; each is kept as soon as it is there."""

    folder: Path
    work: Work
    log: "_ResultLog"

    def baseline(self, name: str, tasks: Sequence[tuple[Evaluation, Task]]) -> list[Result]:
        """What a function of the pixels reaches."""
        results = []
        for evaluation, task in tasks:
            measure = partial(task.measure_baseline, name)
            results.append(self._result(name, 0, evaluation, task, measure))
        return results

    def encoder(
        self, name: str, step: int, evaluation: Evaluation, task: Task, build: Callable[[], PretrainedEncoder]
    ) -> Result:
        """What an encoder reaches."""
        return self._result(name, step, evaluation, task, lambda work: task.measure(build(), work))

    def _result(
        self, name: str, step: int, evaluation: Evaluation, task: Task, measure: Callable[[Work], Values]
    ) -> Result:
        # Where the images lie is a matter of the machine; what they are is in the task's protocol.
        keys = evaluation.model_dump(mode="json", exclude={"data"})
        protocol = keys | task.protocol() | {"precision": self.work.precision}
        _refuse_other_images(protocol)
        result = from_first(lambda: self.log.find(step, evaluation.name, name, protocol))
        if result is not None:
            return result
        keeper = RunKeeper(self.folder, {"step": step, "encoder": name, "protocol": protocol})
        work = replace(self.work, keeper=keeper, progress=_titled(f"{evaluation.name}, {name}"))
        values = measure(work) if task.divided() else from_first(lambda: measure(work))
        result = Result(step, evaluation.name, name, protocol, values)
        if is_first():
            self.log.add(result)
            keeper.remove()
        return result


def _refuse_other_images(protocol: dict[str, Any]) -> None:
    others = [number for number, each in enumerate(collect(protocol)) if each != protocol]
    if others:
        raise InputError(
            f"rank {others[0]} sees other images than rank {rank()} (their names or sizes differ); give every machine "
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

    def find(self, step: int, name: str, encoder: str, protocol: dict[str, Any]) -> Result | None:
        """The result of the same evaluation, encoder, checkpoint and protocol, if there is one."""
        for each in self._results:
            if (each.step, each.name, each.encoder, each.protocol) == (step, name, encoder, protocol):
                return each
        return None

    def add(self, result: Result) -> None:
        """Append a line; a run folder that cannot be written must not cost the values."""
        self._results.append(result)
        try:
            self._rows.append(asdict(result))
        except (OSError, StorageError) as error:
            _log.warning("%s cannot be written (%s): the values are shown but not kept", self._rows.path, error)
