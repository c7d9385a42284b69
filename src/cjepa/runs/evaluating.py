"""`cjepa evaluate`: the encoder of a run beside its untrained start and features that nobody had to learn."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cjepa.build import When, Which, build_encoder, choose_device, find_checkpoint, read_config
from cjepa.config import RunConfig
from cjepa.data import DataConfig, FolderConfig
from cjepa.errors import InputError, StorageError
from cjepa.evaluation import evaluate
from cjepa.evaluation.baselines import colour_statistics, raw_pixels
from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.models import ModelConfig
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.weights import Weights, holds_weights, open_weights
from cjepa.runs.labelled_images import open_labelled
from cjepa.training.rows import RowLog, read_rows

_log = logging.getLogger(__name__)

EVALUATIONS = "evaluations.jsonl"
RAW_PIXELS, COLOUR_STATISTICS, UNTRAINED = "raw pixels", "colour statistics", "untrained"

Evaluation = KnnConfig | LinearConfig


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

    Every result is a line of evaluations.jsonl in the run folder; what is there is not computed again. run: a run
    folder, or weights that cjepa.load_encoder opens, for which images is needed. images: a folder of labelled images
    in place of those that the run was trained on. comparisons: also what it has to beat.
    Raises InputError without a run, a checkpoint or labels, NoValidCheckpointError when no checkpoint verifies.
    """
    chosen, foreign = choose_device(device), holds_weights(run)
    if foreign:
        weights = open_weights(run)
        config, step, trained = _config_of(weights, images), 0, PretrainedEncoder.of(weights, which)
    else:
        config, used = _with_images(read_config(run), images), find_checkpoint(run, checkpoint)
        step, trained = used.step, build_encoder(config, used, which)
    labelled = open_labelled(config)
    log = _ResultLog(results_path(run))

    def measure(encoder: str, step: int, features: Callable[[], LabelledFeatures]) -> list[Result]:
        return _measure(evaluations, Result(step, "", encoder, labelled.protocol(), {}), features, log)

    results = []
    if comparisons:
        start = build_encoder(config, None)
        results += measure(RAW_PIXELS, 0, lambda: labelled.computed(raw_pixels))
        results += measure(COLOUR_STATISTICS, 0, lambda: labelled.computed(colour_statistics))
        results += measure(UNTRAINED, 0, lambda: labelled.embedded(start, UNTRAINED, chosen))
    return results + measure(which, step, lambda: labelled.embedded(trained, which, chosen))


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


def _with_images(config: RunConfig, images: Path | None) -> RunConfig:
    if images is None:
        return config
    data = config.data.model_copy(update={"source": FolderConfig(path=images)})
    return config.model_copy(update={"data": data})


def _measure(
    evaluations: Sequence[Evaluation], subject: Result, features: Callable[[], LabelledFeatures], log: "_ResultLog"
) -> list[Result]:
    """A result for each evaluation; features are computed once, and not at all where every result is known."""
    results, computed = [], None
    for evaluation in evaluations:
        protocol = evaluation.model_dump(mode="json") | subject.protocol
        result = log.find(subject.step, evaluation.name, subject.encoder, protocol)
        if result is None:
            computed = computed or features()
            values = evaluate(evaluation, computed)
            result = Result(subject.step, evaluation.name, subject.encoder, protocol, values)
            log.add(result)
        results.append(result)
    return results


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
