"""Where the time of one training step goes, by kind of operation.

    python -m benchmarks.trace

takes one step of each case of step.py under torch's profiler, after one that is not counted, and adds up the time that
operations spent in themselves. Shares of a step are what it is for; how long steps last, step.py and peers.py say. It
writes benchmarks/results/trace.json; `--report` prints the table from that file, `--trace FILE` writes the trace of the
first case for chrome://tracing or Perfetto.
"""

import argparse
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import EventList, FunctionEvent, Interval
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.step import CASES, PARTS, Case, typical_batch
from benchmarks.trace_figure import Span, draw
from cjepa.build import build_trainer
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import describe_environment
from cjepa.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "trace.json"
KINDS = {
    "products": ("aten::mm", "aten::addmm", "mkldnn::", "OneDnnLinear"),
    "attention": ("aten::_scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax"),
    "GELU": ("aten::gelu",),
    "LayerNorm": ("aten::native_layer_norm",),
    "copies": ("aten::copy_", "aten::cat", "aten::gather", "aten::index", "aten::fill_", "aten::zero_"),
    "sums": ("aten::sum", "aten::add", "aten::mul", "aten::div"),
    "optimizer, average": ("aten::_fused_adamw", "aten::lerp_", "aten::_foreach_lerp", "aten::linalg_vector_norm"),
}
"""What the operations of a step are counted as, by the beginnings of their names; the rest is `other`."""
_PHASE = "part: "


def kind_of(operation: str) -> str:
    """The kind whose beginning fits best."""
    fitting = [(len(start), kind) for kind, starts in KINDS.items() for start in starts if operation.startswith(start)]
    return max(fitting)[1] if fitting else "other"


def shares(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Share of each kind in the time of all operations."""
    found = dict.fromkeys((*KINDS, "other"), 0.0)
    for operation, time in times:
        found[kind_of(operation)] += time
    whole = sum(found.values())
    return {kind: time / whole for kind, time in found.items()}


class Phases:
    """Names the parts of a trainer's step in the profile: one range for each, from where it begins to the next."""

    def __init__(self, trainer: Trainer) -> None:
        self._range: record_function | None = None
        model, optimizer = trainer.model, trainer.optimizer
        modules = (model.target_encoder, *model.learned.values(), trainer.objective)
        for name, module in zip(PARTS[:4], modules, strict=True):
            module.register_forward_pre_hook(partial(self.begin, name))
        trainer.objective.register_forward_hook(partial(self.begin, "backward"))
        optimizer.register_step_pre_hook(partial(self.begin, "optimizer"))
        optimizer.register_step_post_hook(partial(self.begin, "average"))

    def begin(self, name: str, *_: object) -> None:
        """What went on ends here."""
        self.end()
        self._range = record_function(f"{_PHASE}{name}")
        self._range.__enter__()

    def end(self) -> None:
        """Nothing that has a name goes on."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
        self._range = None


def measure(case: Case, device: torch.device, trace: Path | None = None, figure: Path | None = None) -> dict[str, Any]:
    """The row of a case; its trace and figure, where wanted."""
    trainer, batch = build_trainer(case.config, 100 * case.batch_size, device), typical_batch(case)
    trainer.take_step(batch)
    phases = Phases(trainer)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, acc_events=True) as profiled:
        trainer.take_step(batch)
        phases.end()
    if trace is not None:
        profiled.export_chrome_trace(str(trace))
    if figure is not None:
        events = profiled.events()
        assert events is not None
        draw(f"One step of {case.name}, {case.batch_size} images", *chart(events), figure)
    times = [
        (each.key, each.self_device_time_total if device.type == "cuda" else each.self_cpu_time_total)
        for each in profiled.key_averages()
        if not each.key.startswith(_PHASE)
    ]
    return {"case": case.name, "shares": shares(times)}


def chart(events: EventList) -> tuple[dict[str, Span], dict[str, list[Span]]]:
    """The parts of the step, and for every kind when its operations ran on the CPU, in ms since the first part."""
    named = {each.name: each.time_range for each in events if each.name.startswith(_PHASE)}
    start = min(each.start for each in named.values())
    lanes: dict[str, list[Span]] = {kind: [] for kind in (*KINDS, "other")}
    for each in events:
        if each.name not in named:
            lanes[kind_of(each.name)] += [_span(own, start) for own in own_time(each)]
    return {name.removeprefix(_PHASE): _span(each, start) for name, each in named.items()}, lanes


def own_time(event: FunctionEvent) -> list[Interval]:
    """When an operation ran itself: between the operations that it consists of."""
    found, begin = [], event.time_range.start
    for child in sorted((each.time_range for each in event.cpu_children), key=lambda each: each.start):
        found.append(Interval(begin, child.start))
        begin = child.end
    return [own for own in (*found, Interval(begin, event.time_range.end)) if own.end > own.start]


def _span(interval: Interval, start: float) -> Span:
    return (interval.start - start) / 1e3, (interval.end - interval.start) / 1e3


def table(path: Path) -> str:
    """Percent of a step, in Markdown."""
    kinds = (*KINDS, "other")
    lines = [f"| case | {' | '.join(f'{kind}, %' for kind in kinds)} |", "|" + "---|" * (1 + len(kinds))]
    for row in sorted(json.loads(path.read_text())["rows"], key=lambda row: _place(row["case"])):
        cells = (f"{100 * row['shares'][kind]:.1f}" for kind in kinds)
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(case: str) -> int:
    return list(CASES).index(case) if case in CASES else len(CASES)


def main() -> int:
    """0 when all cases were traced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--trace", type=Path, help="where to write the trace of the first case")
    parser.add_argument("--figure", type=Path, help="where to draw the step of the first case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the table from the result file")
    arguments = parser.parse_args()
    if not arguments.report:
        torch.set_num_threads(arguments.threads)
        keep_freed_memory()
        device, wanted = torch.device(arguments.device), (arguments.trace, arguments.figure)
        rows = [measure(CASES[name], device, *(() if i else wanted)) for i, name in enumerate(arguments.cases)]
        arguments.out.write_text(json.dumps({"environment": describe_environment(), "rows": rows}, indent=1) + "\n")
    print(table(arguments.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
