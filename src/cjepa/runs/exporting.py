"""`cjepa export`: the encoder of a run, or of weights from elsewhere, in the format of another library, checked."""

import json
import logging
import shlex
from pathlib import Path
from typing import Any, get_args

from cjepa import __version__
from cjepa.build import (
    CONFIG,
    When,
    Which,
    find_checkpoint,
    load_encoder,
    read_config,
    read_weights,
    untrained_encoder,
)
from cjepa.config import RunConfig, dump_yaml
from cjepa.evaluation.labelled import counts_images
from cjepa.export import AnyExport, Export, citations, export_encoder
from cjepa.export.card import Card, Table, number, render_card
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.weights import holds_weights
from cjepa.runs.advice import advised
from cjepa.runs.continuing import DATA
from cjepa.runs.evaluating import UNTRAINED, WEIGHTS_SEED, encoder_digest, results_path
from cjepa.runs.pretraining import START
from cjepa.training.health import Record, judge
from cjepa.training.metrics import read_metrics
from cjepa.training.rows import read_object, read_rows
from cjepa.types import Part

_log = logging.getLogger(__name__)
METRICS, ENVIRONMENT = "metrics.jsonl", "environment.json"
_ENCODERS = (UNTRAINED, *get_args(Which))
_CJEPA = "C-JEPA (Contrastive-JEPA)", ("jepa", "c-jepa"), citations.CJEPA
_BASELINES = {
    "ijepa": ("I-JEPA", ("jepa", "i-jepa"), citations.IJEPA),
    "vicreg": ("VICReg", ("vicreg",), citations.VICREG),
    "simsiam": ("SimSiam", ("simsiam",), citations.SIMSIAM),
}
"""The objectives that are not C-JEPA, as a card calls them, their tags and papers."""


def export_run(
    run: Path,
    config: AnyExport,
    folder: Path,
    *,
    which: Which = "target",
    checkpoint: When = "last",
    licence: str = "",
    heads: int | None = None,
) -> Export:
    """Write an encoder with its model card into a new folder and check it there; nothing is left when it is off.

    run: a run folder, or weights that cjepa.load_encoder opens. licence: of the weights, for the card. Raises
    InputError, NoValidCheckpointError, and ParityError when the numbers differ.
    """
    encoder = load_encoder(run, encoder=which, checkpoint=checkpoint, heads=heads)
    card = card_of(run, which, checkpoint, licence, heads)
    if checkpoint == "best" and not holds_weights(run) and find_checkpoint(run, checkpoint).step == 0:
        _log.warning("the best checkpoint is that of step 0, before any training: nothing measured later was better")
    return export_encoder(
        config, encoder, folder, lambda usage: render_card(card, encoder, config.name, usage, __version__)
    )


def card_of(
    path: Path, which: Which = "target", checkpoint: When = "last", licence: str = "", heads: int | None = None
) -> Card:
    """What is known about the encoder of a run, or that nothing is, where the weights come from elsewhere."""
    results = _results(path, checkpoint, heads)
    if holds_weights(path):
        name = path.name if path.name not in ("", "..") else path.resolve().name
        return Card(
            title=name,
            summary=f"Weights read from {name}; how they were trained is not recorded there.",
            data=["Not recorded."],
            results=results,
            health="Not recorded.",
            reproduce=["The training is not recorded; only these weights can be repeated, by exporting them again."],
            licence=licence,
            ancestry="Whoever trained these weights decides under which terms they may be used.",
        )
    run_config, step = read_config(path), find_checkpoint(path, checkpoint).step
    method, tags, paper = _BASELINES.get(run_config.objective.name, _CJEPA)
    return Card(
        title=path.resolve().name,
        summary=(
            f"Pre-trained by {method} on unlabelled images: the {which} encoder after step {step}, "
            f"objective `{run_config.objective.name}`."
        ),
        tags=tags,
        data=_data_lines(path, run_config),
        results=[*_monitored(path, step), *results],
        health=_health(path, run_config),
        reproduce=_reproduce(path),
        recipe=dump_yaml(_without_folders(run_config)).strip(),
        licence=licence,
        ancestry=_ancestry(path, run_config),
        citation=paper.bibtex(),
    )


def _without_folders(config: RunConfig) -> RunConfig:
    """The config with the last parts of its paths only: where a machine keeps its files belongs to nobody else."""
    source = config.data.source.model_copy(update=_last_parts(config.data.source))
    data = config.data.model_copy(update={**_last_parts(config.data), "source": source})
    start = config.model.start and Path(config.model.start.name)
    return config.model_copy(update={"data": data, "model": config.model.model_copy(update={"start": start})})


def _last_parts(part: Part) -> dict[str, Path]:
    return {key: Path(value.name) for key, value in part if isinstance(value, Path)}


def _data_lines(run: Path, config: RunConfig) -> list[str]:
    data = read_object(run / DATA)
    classes = len(data.get("classes", []))
    images, steps, batch = data.get("images", 0), data.get("steps", 0), config.training.batch_size
    return [
        f"{images:,} images, source `{config.data.source.name}`, without labels"
        + (f" (folders name {classes} classes, used to evaluate only)" if classes else ""),
        f"fingerprint of names and sizes: `{data.get('fingerprint', 'not recorded')}`",
        f"{steps:,} steps of {batch} images, {config.training.epochs:g} epochs",
    ]


def _monitored(run: Path, step: int) -> list[Table]:
    """What was measured while training, at its start and at the step of the checkpoint."""
    rows = [row for row in _evaluated(run) if row["step"] <= step]
    if not rows or rows[0]["step"] > 0:
        return []
    names = [name for name in rows[-1] if name not in ("step", "split")]
    shown = [("before training, step 0", rows[0]), (f"target encoder, step {rows[-1]['step']}", rows[-1])]
    return [
        Table(
            "Measured while training",
            ["features", *names],
            [[label, *(number(row.get(name)) for name in names)] for label, row in shown],
        )
    ]


def _results(path: Path, checkpoint: When, heads: int | None) -> list[Table]:
    """One table for each evaluation and protocol: baselines, the untrained encoder, and the encoders that are here.

    Lines of weights that were here before are left out, and so are those that do not say of which they are.
    """
    results = results_path(path)
    if not results.is_file():
        return []
    weights = read_weights(path, checkpoint, heads)
    seed = WEIGHTS_SEED if holds_weights(path) else read_config(path).seed
    encoders = [PretrainedEncoder.of(weights, which) for which in get_args(Which)]
    untrained = untrained_encoder(weights.config, weights.preparation, seed)
    here = {encoder_digest(encoder) for encoder in (untrained, *encoders)}
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_rows(results):
        if not {"name", "encoder", "protocol", "values"} <= row.keys():
            continue  # a line of another tool
        if row["values"] and (row["encoder"] not in _ENCODERS or row.get("digest") in here):
            key = f"{row['name']} {json.dumps(row['protocol'], sort_keys=True)}"
            tables.setdefault(key, {})[_features(row)] = row
    known = [list(rows.values()) for rows in tables.values() if any(row.get("digest") for row in rows.values())]
    alike: dict[str, list[dict[str, Any]]] = {}
    for rows in known:
        alike.setdefault(rows[0]["name"], []).append(rows[0]["protocol"])
    return [_table(rows, alike[rows[0]["name"]]) for rows in known]


def _table(rows: list[dict[str, Any]], alike: list[dict[str, Any]]) -> Table:
    """alike: protocols of the tables of this name; what they differ in is in the title."""
    first = rows[0]
    protocol = first["protocol"]
    images = f" of {protocol.get('test_images', '?')} test images" if counts_images(protocol) else ""
    differing = [key for key in protocol if any(other.get(key) != protocol[key] for other in alike)]
    telling = ", ".join(f"{key} {json.dumps(protocol[key])}" for key in differing)
    return Table(
        f"{first['name']}, percent{images}" + (f" ({telling})" if telling else ""),
        ["features", *first["values"]],
        [[_features(row), *(number(value) for value in row["values"].values())] for row in rows],
    )


def _features(row: dict[str, Any]) -> str:
    encoder = f"{row['encoder']} encoder" if row["encoder"] in _ENCODERS else row["encoder"]
    return f"{encoder}, step {row['step']}" if row["step"] else str(encoder)


def _health(run: Path, config: RunConfig) -> str:
    """The verdict on the last evaluation, as the run gave it."""
    data, rows = read_object(run / DATA), _evaluated(run)
    quality, tested, steps = data.get("quality"), data.get("tested"), data.get("steps")
    if not rows or rows[0]["step"] > 0 or quality not in rows[-1] or not tested or not steps:
        return "Not recorded by the version that trained it."
    verdict = judge(
        Record(
            _values(rows[0]),
            _values(rows[-1]),
            max(row["effective_rank"] for row in rows),
            max(row[quality] for row in rows),
            quality,
            tested,
            rows[-1]["step"] / steps,
        )
    )
    return f"{advised(verdict, config)} (measured on {tested} images at step {rows[-1]['step']} of {steps})"


def _reproduce(run: Path) -> list[str]:
    environment = read_object(run / ENVIRONMENT)
    commit, version = environment.get("commit") or {}, environment.get("packages", {}).get("cjepa", "(version unknown)")
    changed = " with changes that are not committed" if commit.get("changed") else ""
    made_by = f"cjepa {version}" + (f", commit {commit['hash']}{changed}" if commit else "")
    return [
        f"Trained by {made_by}. With the same images, the config below as `{CONFIG}`:",
        "",
        "```sh",
        f"cjepa pretrain {CONFIG} --out {shlex.quote(run.resolve().name)}",
        "```",
    ]


def _ancestry(run: Path, config: RunConfig) -> str:
    """Where the run began, from its config even if start.json is lost: a licence depends on it."""
    start = read_object(run / START)
    origin = start.get("path") or config.model.start
    if origin is None:
        return ""
    told = f"{start.get('format', 'format unknown')}, sha256 {start.get('sha256', 'not recorded')}"
    return (
        f"Training started from the weights {Path(origin).name} ({told}); "
        "their licence applies to what is derived from them."
    )


def _evaluated(run: Path) -> list[dict[str, Any]]:
    path = run / METRICS
    return [row for row in read_metrics(path) if row["split"] == "evaluation"] if path.is_file() else []


def _values(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("step", "split")}
