"""`cjepa report`: what is in the folders of runs, and from it one HTML page."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from cjepa import __version__
from cjepa.build import CHECKPOINTS, read_config
from cjepa.config import RunConfig, dump_yaml
from cjepa.data import DemoConfig
from cjepa.errors import CjepaError, InputError
from cjepa.evaluation.labelled import counts_images
from cjepa.objectives import term_weights
from cjepa.runs.evaluating import EVALUATIONS
from cjepa.runs.pictures import METRICS, some_masks
from cjepa.runs.report_facts import facts_of, gave_up, judgement_of, progress_of
from cjepa.runs.snapshots import SnapshotStore
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.durable import replace
from cjepa.training.metrics import read_metrics
from cjepa.training.rows import read_object, read_rows
from cjepa.visualization.report import Evaluation, RunMaterial, render

_log = logging.getLogger(__name__)

REPORT, PAGE, COMPARISON, TIMING = "report", "index.html", "comparison.html", "timing.jsonl"
DATA, ENVIRONMENT, UNREADABLE, DIVERGED = "data.json", "environment.json", "unreadable.jsonl", "diverged"
_LIVE = re.compile(r'<meta http-equiv="refresh"[^>]*>|<span class="live">[^<]*</span>')
_MACHINE = {"data": ("workers",), "training": ("device", "threads")}
_PLACES = ("path", "test", "root", "index")
"""Keys that name the machine and not the run."""


def write_report(runs: Mapping[str, Path], out: Path | None = None, *, live: bool = False) -> Path:
    """Write the page of runs, by the name to be shown, and return its path.

    out: by default RUN/report/index.html; of several runs comparison.html in that folder of the first, whose own page
    stays. live: the run goes on, and a browser is to read the page again by itself. Raises InputError where one is no
    run, or the page cannot be written.
    """
    path = out or next(iter(runs.values())) / REPORT / (PAGE if len(runs) == 1 else COMPARISON)
    material = [read_run(run, name, live=live) for name, run in runs.items()]
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")
    page = render(material, __version__, written, live=live)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, page.encode())
    except OSError as error:
        raise InputError(f"the report {path} cannot be written: {error}; choose another place with --out") from error
    return path


def write_live_report(run: Path) -> None:
    """The page of a run that goes on."""
    write_report({run.resolve().name: run}, live=True)


def stop_refreshing(run: Path) -> None:
    """Let browsers rest: the run's page is not going to change any more."""
    path = run / REPORT / PAGE
    if path.exists():
        text = path.read_text(encoding="utf-8")
        still = _LIVE.sub("", text)
        if still != text:
            replace(path, still.encode())


def name_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """Short names of run folders: their own, with as many of their parents' as tell them apart."""
    whole = [run.resolve() for run in runs]
    if len(set(whole)) < len(whole):
        raise InputError("the same run is given twice; name each run once")
    depth = 1
    names = [path.name for path in whole]
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in whole]
    return dict(zip(names, runs, strict=True))


def read_run(run: Path, name: str, *, live: bool = False) -> RunMaterial:
    """Everything that a page shows of a run; what is missing is left out, and noted."""
    config = read_config(run)
    data, environment = read_object(run / DATA), read_object(run / ENVIRONMENT)
    rows = read_metrics(run / METRICS) if (run / METRICS).exists() else []
    notes = [] if rows else ["there are no metrics yet, so there are no curves"]
    store = SnapshotStore(run / REPORT)
    if not live and not store.steps():
        notes += _fill(run, config)
    snapshots, samples = store.load_all(), store.load_samples()
    clock = _clock(run / TIMING)
    if clock is None:
        notes.append("timing.jsonl is missing, so there are no hours")
    quality, tested = _quality(config, data, rows)
    steps = data.get("steps")
    taken = max((int(row["step"]) for row in rows), default=0)
    evaluations = _evaluations(run / EVALUATIONS)
    evaluated = max((each.step for each in evaluations if each.encoder == "target"), default=None)
    saved, dumps = (CheckpointStore(run / folder).steps() for folder in (CHECKPOINTS, DIVERGED))
    last = saved[-1] if saved else None
    if evaluated is not None and last is not None and evaluated < last:
        notes.append(f"cjepa evaluate saw the encoder after step {evaluated}; the last checkpoint is of step {last}")
    end = None if live else gave_up(dumps, saved, taken, config.training.most_skipped)
    return RunMaterial(
        name=name,
        identity=_identity(config, data),
        seed=config.seed,
        judgement=judgement_of(config, rows, quality, tested, steps or max(taken, 1), end),
        progress=progress_of(taken, steps, live),
        finished=taken == steps,
        facts=facts_of(run, config, data, environment, taken, clock[1][-1] if clock is not None else None),
        config=dump_yaml(config),
        rows=rows,
        weights=term_weights(config.objective),
        quality=quality,
        tested=tested,
        batch_size=config.training.batch_size,
        images_per_epoch=data.get("images") or config.training.batch_size,
        grid=config.grid,
        patch_size=config.model.encoder.patch_size,
        started=config.model.start is not None,
        clock=clock,
        evaluations=evaluations,
        unreadable=_unreadable(run / UNREADABLE),
        classes=tuple(data.get("classes", ())),
        samples=samples,
        snapshots=snapshots if samples is not None else [],
        masks=some_masks(config),
        notes=notes,
    )


def _fill(run: Path, config: RunConfig) -> list[str]:
    """Snapshots of a run that kept none, from its checkpoints and images; a note where that cannot be done."""
    from cjepa.runs.recording import record_checkpoints

    try:
        record_checkpoints(run, config)
    except (CjepaError, OSError) as error:
        _log.warning("no pictures of the representation: %s", error)
        return [f"no pictures of the representation: {error}"]
    return []


def _identity(config: RunConfig, data: Mapping[str, Any]) -> str:
    """What two runs have in common that differ by their seed alone, on whatever machine: images included."""
    values = config.model_dump(mode="json", exclude={"seed", "logging"})
    for part, keys in _MACHINE.items():
        for key in keys:
            values[part].pop(key)
    for key in _PLACES:
        values["data"]["source"].pop(key, None)
    # The demo's crops are drawn by the seed.
    images = None if isinstance(config.data.source, DemoConfig) else data.get("fingerprint")
    return json.dumps([values, images], sort_keys=True)


def _clock(path: Path) -> tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "k"]] | None:
    rows = read_rows(path) if path.exists() else []
    pairs = [(row["step"], row["seconds"]) for row in rows if isinstance(row.get("seconds"), int | float)]
    if not pairs:
        return None
    steps, seconds = np.array(pairs, dtype=np.float64).T
    return steps, seconds


def _quality(config: RunConfig, data: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """The accuracy that decides, and on how many images; of runs that did not note it, by their rows."""
    if "quality" in data and "tested" in data:
        return data["quality"], data["tested"]
    measured = next((row for row in rows if row["split"] == "evaluation"), {})
    quality = "crop_retrieval" if "crop_retrieval" in measured else "knn_20_centred"
    return quality, config.monitor.test_images


def _evaluations(path: Path) -> list[Evaluation]:
    found: dict[tuple[object, ...], Evaluation] = {}
    for row in read_rows(path) if path.exists() else []:
        if not {"name", "encoder", "protocol", "values"} <= row.keys():
            continue  # a line of another tool
        protocol = row["protocol"]
        values = {name: float(value) for name, value in row["values"].items() if isinstance(value, int | float)}
        images = int(protocol.get("test_images", 0)) if counts_images(protocol) else 0
        text = json.dumps(protocol, sort_keys=True)
        # A later line of the same step is of weights that took the place of the earlier one's.
        evaluation = Evaluation(row["step"], row["name"], row["encoder"], text, images, values)
        found[evaluation.step, evaluation.name, evaluation.encoder, text] = evaluation
    return list(found.values())


def _unreadable(path: Path) -> list[tuple[str, str]]:
    rows = read_rows(path) if path.exists() else []
    return [(str(row.get("name", "")), str(row.get("reason", ""))) for row in rows]
