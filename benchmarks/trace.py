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
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step import CASES, Case, typical_batch
from cjepa.build import build_trainer
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import describe_environment

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


def measure(case: Case, device: torch.device, trace: Path | None) -> dict[str, Any]:
    """The row of a case."""
    trainer, batch = build_trainer(case.config, 100 * case.batch_size, device), typical_batch(case)
    trainer.take_step(batch)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, acc_events=True) as profiled:
        trainer.take_step(batch)
    if trace is not None:
        profiled.export_chrome_trace(str(trace))
    operations = profiled.key_averages()
    times = [
        (each.key, each.self_device_time_total if device.type == "cuda" else each.self_cpu_time_total)
        for each in operations
    ]
    return {"case": case.name, "shares": shares(times)}


def table(path: Path) -> str:
    """Percent of a step, in Markdown."""
    kinds = (*KINDS, "other")
    lines = [f"| case | {' | '.join(f'{kind}, %' for kind in kinds)} |", "|" + "---|" * (1 + len(kinds))]
    for row in json.loads(path.read_text())["rows"]:
        cells = (f"{100 * row['shares'][kind]:.1f}" for kind in kinds)
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """0 when all cases were traced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--trace", type=Path, help="where to write the trace of the first case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the table from the result file")
    arguments = parser.parse_args()
    if not arguments.report:
        torch.set_num_threads(arguments.threads)
        keep_freed_memory()
        device, first = torch.device(arguments.device), arguments.cases[0]
        rows = [measure(CASES[name], device, arguments.trace if name == first else None) for name in arguments.cases]
        arguments.out.write_text(json.dumps({"environment": describe_environment(), "rows": rows}, indent=1) + "\n")
    print(table(arguments.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
