"""What was run and how it went, in words for the report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cjepa.config import RunConfig
from cjepa.objectives import TwoViewsConfig
from cjepa.runs.advice import advised
from cjepa.training.divergence import remedies
from cjepa.training.health import Record, judge
from cjepa.visualization.report import Judgement
from cjepa.visualization.style import counted

Rows = Sequence[Mapping[str, Any]]


def gave_up(dumps: Sequence[int], checkpoints: Sequence[int], taken: int, most_skipped: int) -> int | None:
    """The step at which a run gave up, by the dumps that it left; None where it did not, or got past it later.

    taken: the last step with a row, of which there may be some after the dump: those that changed nothing.
    """
    last = max(dumps, default=None)
    passed = last is not None and (taken > last + most_skipped or max(checkpoints, default=0) > last)
    return None if passed else last


def judgement_of(
    config: RunConfig, rows: Rows, quality: str, tested: int, steps: int, end: int | None = None
) -> Judgement:
    """The verdict of a run by its rows: that of cjepa.training.health, or that it diverged or was not measured yet.

    end: the step at which it gave up, if it did; the rows may not say so, since not every step has one.
    """
    measured = [_numbers(row) for row in rows if row["split"] == "evaluation"]
    trained = [row for row in rows if row["split"] == "train"]
    if end is not None or (trained and math.isnan(trained[-1].get("loss", 0.0))):
        return Judgement(
            "diverged",
            f"the loss was not finite at step {trained[-1]['step']}"
            if end is None
            else f"the run gave up at step {end}; cjepa replay takes the steps that follow again",
            f"In a new run {remedies(config.training.optimizer, config.training.precision)}.",
        )
    needed = (quality, "effective_rank", "spread", "explained_variance")
    usable = [row for row in measured if all(math.isfinite(row.get(name, math.nan)) for name in needed)]
    if not usable:
        return Judgement("too early", "nothing was measured yet", "")
    if usable[0]["step"] > 0:
        return Judgement("unknown", "what was measured before training is not in metrics.jsonl any more", "")
    record = Record(
        untrained=usable[0],
        current=usable[-1],
        peak_rank=max(row["effective_rank"] for row in usable),
        best_quality=max(row[quality] for row in usable),
        quality=quality,
        images=tested,
        progress=usable[-1]["step"] / steps,
    )
    verdict = advised(judge(record), config)
    return Judgement(verdict.state, verdict.evidence, verdict.advice)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


def progress_of(taken: int, steps: int | None, live: bool) -> str:
    """How far a run is."""
    if steps is None:
        return f"{taken} steps are in the metrics; how many were meant is not known."
    if taken >= steps:
        return f"All {steps} steps are taken."
    if live:
        return f"{taken} of {steps} steps were taken when this page was written."
    return f"Not finished: {taken} of {steps} steps are taken; the same cjepa pretrain command continues the run."


def facts_of(
    run: Path,
    config: RunConfig,
    data: Mapping[str, Any],
    environment: Mapping[str, Any],
    taken: int,
    seconds: float | None,
) -> list[tuple[str, str]]:
    """What was run: method, data, model, training, machine, versions, commit, seed, duration, speed."""
    encoder, training = config.model.encoder, config.training
    rows, columns = config.grid
    height, width = config.data.size
    steps, epochs = data.get("steps", "?"), f"{training.epochs:g} epochs"
    blocks, heads = counted(encoder.depth, "block"), counted(encoder.heads, "head")
    predictor, two_views = config.model.predictor, isinstance(config.objective, TwoViewsConfig)
    one_way = ", one-way attention" if predictor.attention == "one_way" else ""
    depth = counted(predictor.blocks(encoder.width), "block")
    predicts = "none" if two_views else f"width {predictor.width}, {depth}{one_way}"
    facts = [
        ("objective", _objective(config)),
        ("images", _images(data)),
        ("encoder", f"width {encoder.width}, {blocks}, {heads}"),
        ("input", f"{height} × {width} pixels in {rows} × {columns} patches"),
        ("predictor of patches", predicts),
        ("training", f"{epochs}, {steps} steps of {training.batch_size} images, {training.precision}"),
        ("seed", str(config.seed)),
    ]
    if seconds is not None:
        facts.append(("duration", duration(seconds)))
    if seconds and taken:
        speed = taken * training.batch_size / seconds
        facts.append(("speed", f"{speed:,.0f} images/s, evaluations included"))
    facts += _machine(environment)
    return [*facts, ("run folder", str(run))]


def _objective(config: RunConfig) -> str:
    objective = config.objective
    beta = objective.model_dump().get("beta")
    return objective.name if beta is None else f"{objective.name}, beta {beta:g}"


def _images(data: Mapping[str, Any]) -> str:
    if "images" not in data:
        return "unknown: data.json is missing"
    classes = len(data.get("classes", ()))
    return f"{data['images']:,}, " + (f"{classes} classes (used to evaluate only)" if classes else "no labels")


def _machine(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not environment:
        return [("machine", "unknown: environment.json is missing")]
    cpu, packages = environment.get("cpu", {}), environment.get("packages", {})
    devices = [str(device.get("name")) for device in environment.get("devices", ())]
    commit = environment.get("commit") or {}
    changed = " with uncommitted changes" if commit.get("changed") else ""
    threads = counted(cpu.get("threads", 0), "thread")
    processor = ", ".join(map(str, (cpu.get("model", "?"), *cpu.get("instructions", ()), threads)))
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    return [
        ("hardware", f"{processor}; " + (", ".join(devices) or "no GPU")),
        ("system", f"Python {environment.get('python', '?')} on {environment.get('platform', '?')}"),
        ("versions", versions),
        ("commit", f"{commit['hash']}{changed}" if "hash" in commit else "not a checkout"),
        ("command", " ".join(map(str, environment.get("command", ()))).replace("__main__.py", "cjepa", 1)),
    ]


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 4 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
