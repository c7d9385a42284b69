"""What the command line prints: tables of at most 80 columns, summaries, and the documentation of every key."""

import math
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cjepa.config import RunConfig, describe_keys, parts_of, variant_name
from cjepa.config.help import REQUIRED, KeyHelp
from cjepa.config.presets import preset_facts, preset_names, preset_summary
from cjepa.evaluation import EvaluationConfig
from cjepa.export import Export, ExportConfig
from cjepa.export.card import number
from cjepa.runs import Demo, Diagnosis, Embedded, Outcome, Plan, Replayed, Result, Sharded, results_path
from cjepa.runs.report_facts import duration
from cjepa.types import Part

WIDTH = 80
_SHOWN = 6
"""Names that are listed before the rest is left out."""
_ENCODERS = ("untrained", "target", "context")
_COUNTED = {"train_images": "training", "test_images": "test images", "sequences": "sequences", "frames": "frames"}


def config_help() -> str:
    """Every key of a run, grouped, as it would be typed with its default."""
    lines = _wrapped(
        "Config keys with their defaults. A bare value stands for a group: data=DIR, objective=ijepa, "
        "model.encoder=small. Lists are written [0.3, 1.0], absent values null; quote what the shell would read: "
        "'data.crop_scale=[0.3, 1.0]'."
    )
    rows = describe_keys(RunConfig)
    for group, field in RunConfig.model_fields.items():
        lines += ["", f"{group}: {field.description}"]
        lines += [line for row in rows if row.key.split(".")[0] == group for line in _key_lines(row)]
    return "\n".join(lines)


def evaluation_help() -> str:
    """The keys of every evaluation."""
    return _variants_help("Keys of the evaluations with their defaults:", EvaluationConfig)


def export_help() -> str:
    """The formats of an export and their keys."""
    return _variants_help("Formats, and their keys with their defaults:", ExportConfig)


def _variants_help(title: str, union: Any) -> str:
    lines = [title]
    for part in parts_of(union):
        lines += ["", *_wrapped(f"{variant_name(part)}: {_sentence(part)}")]
        lines += [line for row in describe_keys(part) if row.key != "name" for line in _key_lines(row)]
    return "\n".join(lines)


def _sentence(part: type[Part]) -> str:
    return " ".join((part.__doc__ or "").split())


def _key_lines(row: KeyHelp) -> list[str]:
    value = f" {row.default}" if row.default == REQUIRED else f"={row.default}" if row.default else ""
    kind = row.type.replace("name", f"one of {', '.join(row.choices)}", 1) if row.choices else row.type
    return [*_wrapped(f"{row.key}{value}", "    ", "  "), *_wrapped(f"({kind}) {row.text}", "      ")]


def _wrapped(text: str, indent: str = "", first: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def presets_text() -> str:
    """The presets with their first comment line, what each needs and what it reached."""
    width, lines = max(map(len, preset_names())) + 2, []
    for name in preset_names():
        lines += _wrapped(preset_summary(name), " " * width, name.ljust(width))
        facts = preset_facts(name)
        told = set(facts.values())
        for text in told if len(told) == 1 else (f"{key}: {value}" for key, value in facts.items()):
            lines += _wrapped(text, " " * (width + 2))
    return "\n".join(lines)


def _table(first: str, title: str) -> Table:
    return Table(first, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def outcome_table(outcome: Outcome) -> Table:
    """The values before training and of the trained encoder."""
    table = _table("value", f"before training and after step {outcome.steps}")
    table.add_column("before", justify="right")
    table.add_column("trained", justify="right")
    for name, value in outcome.trained.items():
        table.add_row(name, number(outcome.untrained.get(name, math.nan)), number(value))
    return table


def outcome_text(outcome: Outcome) -> str:
    """Verdict, best checkpoint, run folder and what to do next."""
    labelled = outcome.quality.startswith("knn")
    evaluation = "linear" if labelled else "knn --images LABELLED_FOLDER"
    return "\n".join(
        [
            *_wrapped(f"verdict: {outcome.verdict}"),
            f"best {outcome.quality}: at step {outcome.best_step} of {outcome.steps}",
            f"run folder: {outcome.folder}",
            f"next: cjepa evaluate {evaluation} {shlex.quote(str(outcome.folder))}",
            f'in Python: cjepa.load_encoder("{outcome.folder}")',
        ]
    )


def results_table(results: Sequence[Result]) -> Table:
    """One row for each kind of features, what is to beat first."""
    table = _table("features", f"{results[0].name}, percent")
    names = list(results[0].values)
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(_features(result), *(number(result.values[name]) for name in names))
    return table


def _features(result: Result) -> str:
    if result.encoder not in _ENCODERS:
        return result.encoder
    return f"{result.encoder} encoder" + (f", step {result.step}" if result.step else "")


def results_text(results: Sequence[Result], run: Path) -> str:
    """The protocol in words, and where the lines are."""
    protocol = results[0].protocol
    counted = " and ".join(f"{protocol[key]:,} {words}" for key, words in _COUNTED.items() if key in protocol)
    if "classes" in protocol:
        counted += f" of {protocol['classes']} classes"
    if "image_size" in protocol:
        height, width = protocol["image_size"]
        counted += f", {height} x {width} pixels"
    return f"{counted}\nkept in {results_path(run)}"


def export_text(written: Export) -> str:
    """The largest differences, what was written, and how it is opened."""
    lines = [f"parity: {each}" for each in written.differences]
    lines += [f"written: {', '.join(written.files)}", f"folder: {written.folder}", "", "In Python:", ""]
    return "\n".join(lines + [f"    {line}".rstrip() for line in written.usage.split("\n")])


def embedded_text(embedded: Embedded) -> str:
    """How many images, how fast, what could not be read, and the files."""
    rate = f"{embedded.computed / embedded.seconds:.1f} images/s" if embedded.computed else "all from an earlier call"
    lines = [f"{embedded.images:,} images, {rate}"]
    if embedded.unreadable:
        lines.append(f"{embedded.unreadable} could not be read: their rows are empty, and the .jsonl says why")
    return "\n".join(lines + [f"written: {path}" for path in embedded.files])


def demo_table(demo: Demo) -> Table:
    """The comparison that the demo is for."""
    table = _table("features", f"percent of {demo.test_images:,} test images")
    for name in ("20-NN", "centred", "linear", "rank"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in demo.rows:
        values = (f"{value:.1f}" for value in (row.knn, row.knn_centred, row.linear))
        table.add_row(row.features, *values, "" if math.isnan(row.rank) else f"{row.rank:.1f}", row.verdict)
    return table


def demo_text(demo: Demo) -> str:
    """What the numbers say, both verdicts with their evidence, and where everything is."""
    lines = _wrapped(demo.conclusion)
    lines += ["", *_wrapped(f"C-JEPA: {demo.cjepa.verdict}"), *_wrapped(f"I-JEPA: {demo.ijepa.verdict}")]
    lines += ["", f"run folders: {demo.cjepa.folder}, {demo.ijepa.folder}", f"pictures: {demo.pictures[0].parent}"]
    lines.append(f"report: {demo.report} (open it in a browser)")
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """What a run needs, a line for each thing, and where each number comes from."""
    needs, gib = plan.footprint, float(1 << 30)
    share = plan.batch_size // plan.ranks
    lines = [
        f"{plan.ranks} x {plan.device}, engine {plan.engine}, {plan.precision}",
        f"parameters      {needs.learned:,} learn; the target encoder has {needs.average:,}",
        f"operations      {needs.operations / 1e9:.1f} GFLOP for each image of a step (formula)",
        f"batch           {plan.batch_size} images, {share} on each device, {plan.micro_batch} at a time",
        f"memory          {plan.memory / gib:.1f} GiB at the peak of {plan.available / gib:.0f} (formula); the process "
        f"itself is {plan.process / gib:.1f} of them",
    ]
    if plan.memory > plan.available:
        lines.append(f"                it does not fit: {' or '.join(_what_needs_less(plan))}")
    if plan.seconds_per_image is None:
        lines.append("time            unknown: the device is not here, and its speed in this precision not known")
        return "\n".join(lines)
    rate = 1 / plan.seconds_per_image
    speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    bound, source = ("", "a few steps timed") if plan.timed else ("at most ", "its maker's figure, never reached")
    lines.append(f"speed           {bound}{speed} images/s on one device ({source}; no loading)")
    if plan.seconds_per_epoch is None:
        return "\n".join([*lines, "time            give data=DIR, or --images, for the time of an epoch"])
    epoch, total = plan.seconds_per_epoch, plan.seconds_per_epoch * plan.epochs
    if plan.ranks > 1:
        lines.append("                times below are computed: communication between devices is left out")
    least = "" if plan.timed else "at least "
    return "\n".join([*lines, f"time            {least}{duration(epoch)} an epoch, {duration(total)} in all"])


def _what_needs_less(plan: Plan) -> Iterator[str]:
    """What makes a step smaller, the cheapest first, but for what the plan has."""
    if plan.micro_batch > 1:
        yield f"a training.micro_batch below {plan.micro_batch}"
    if not plan.checkpoint_activations:
        yield "training.checkpoint_activations=true"
    if plan.ranks == 1:
        yield "more devices with training.parallel=fsdp"
    elif plan.engine != "fsdp":
        yield "training.parallel=fsdp"
    yield "a smaller model"


def sharded_text(folders: Sequence[Sharded], use: str) -> str:
    """What each folder of shards holds, what was left out, and what to do next: pretrain with `use`."""
    lines = []
    for each in folders:
        shards = f"{each.shards:,} shard{'s' if each.shards > 1 else ''}"
        lines.append(f"{each.folder}: {each.images:,} images in {shards}, {each.size / 1e6:,.1f} MB")
        if each.undecodable:
            lines += _wrapped(
                f"{each.undecodable:,} images could not be decoded and are in the shards as they were", "  "
            )
        if each.others:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in each.others.most_common(8))
            lines += _wrapped(f"files beside the images: {kinds}", "  ")
    return "\n".join([*lines, f"next: cjepa pretrain PRESET {use}"])


def environment_text(rows: Sequence[tuple[str, str]]) -> str:
    """Names and findings in two columns."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(line for name, text in rows for line in _wrapped(text, " " * width, name.ljust(width)))


def diagnosis_text(diagnosis: Diagnosis, run: Path) -> str:
    """Every checkpoint, which one is used, how far the run is, and what it met on the way."""
    lines = ["", f"run {run}"]
    for step, problems in diagnosis.checkpoints.items():
        mark = " <- used next" if step == diagnosis.used else ""
        lines.append(f"  step {step}: {'damaged' if problems else 'valid'}{mark}")
        lines += [line for problem in problems for line in _wrapped(problem, "    ")]
    if not diagnosis.checkpoints:
        lines.append("  no checkpoint yet: the same `cjepa pretrain` command starts it")
    elif diagnosis.complete:
        lines.append(f"  complete: all {diagnosis.steps} steps are taken")
    elif diagnosis.used is not None:
        total = f" of {diagnosis.steps}" if diagnosis.steps else ""
        lines.append(f"  not complete: the same `cjepa pretrain` command continues after step {diagnosis.used}{total}")
    return "\n".join([*lines, *(line for note in diagnosis.notes for line in _wrapped(note, "    ", "  "))])


def replayed_text(steps: Sequence[Replayed]) -> str:
    """Each step as it was and as it is now, and what is not finite in it."""
    lines = []
    for each in steps:
        recorded = each.recorded
        lines.append(f"step {recorded.step}: {recorded.reason}, {len(recorded.samples)} images")
        lines.append(f"  recorded: loss {recorded.loss}, gradient {recorded.gradient_norm}")
        same = "the same" if each.reproduced else "different" if each.samples_agree else "other images"
        lines.append(f"  now: loss {each.loss}, gradient {each.gradient_norm} ({same})")
        some = ", ".join(each.broken[:_SHOWN]) + (", ..." if len(each.broken) > _SHOWN else "")
        lines += _wrapped(f"not finite in {len(each.broken)} parameters or their gradients: {some}", "    ", "  ")
    return "\n".join(lines)
