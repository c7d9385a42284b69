"""What each fast path of a CPU step gives: steps of the package's trainer, whole and with one of them taken out.

    python -m benchmarks.levers

They take turns, a step each in a process of its own, as in peers.py. Reported is how many times as long a step takes
without a path, in rounds that nothing disturbed. Writes benchmarks/results/levers.json; `--report` prints the table.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.guard import ALLOWED, Spread
from benchmarks.peers import FEWEST, Contestant, Ours, race, take_turns
from benchmarks.step import CASES, Case, typical_batch
from cjepa.models import attention, kernels
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import describe_environment
from cjepa.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "levers.json"
WHOLE, MEMORY = "whole", "freed memory kept"
MOST_IMAGES = 32
"""Of a step: six processes have to fit into the memory of a small machine."""


def without_onednn(_: Trainer) -> None:
    """Products in float32 by MKL."""
    mock.patch.object(kernels, "_mkl_is_slower", return_value=False).start()


def without_explicit_attention(_: Trainer) -> None:
    """Attention in bfloat16 by torch's fused kernel."""
    mock.patch.object(attention, "takes_explicit_attention", return_value=False).start()


def without_short_last_block(trainer: Trainer) -> None:
    """The predictor's last block computes the rows of the context too."""
    last = trainer.model.learned["predictor"].blocks[-1]
    assert isinstance(last, nn.Module)
    whole = last.forward

    def forward(tokens: Tensor, queries: int, targets: tuple[int, int] | None) -> Tensor:
        rows: Tensor = whole(tokens, targets=targets)
        return rows[:, rows.shape[1] - queries :]

    mock.patch.object(last, "forward", forward).start()


def without_fused_optimizer(trainer: Trainer) -> None:
    """AdamW parameter by parameter, torch's default on a CPU."""
    for group in trainer.optimizer.param_groups:
        group["fused"] = None


def without_average_at_once(trainer: Trainer) -> None:
    """The moving average parameter by parameter."""
    model = trainer.model
    pairs = list(zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True))

    @torch.no_grad()
    def update_target(momentum: float) -> None:
        for average, current in pairs:
            average.mul_(momentum).add_(current, alpha=1 - momentum)

    mock.patch.object(model, "update_target", update_target).start()


LEVERS: dict[str, Callable[[Trainer], None]] = {
    "oneDNN": without_onednn,
    "explicit attention": without_explicit_attention,
    "last block short": without_short_last_block,
    "fused AdamW": without_fused_optimizer,
    "average at once": without_average_at_once,
    MEMORY: lambda _: None,
}


def levers_of(case: Case) -> list[str]:
    """Those that the precision of a case has."""
    other = "oneDNN" if case.precision == "bfloat16" else "explicit attention"
    return [name for name in LEVERS if name != other]


def serve(connection: Connection, case: Case, name: str, threads: int) -> None:
    """The process of a contestant: the step whole, or without what `name` says."""
    torch.set_num_threads(threads)
    device, batch = torch.device("cpu"), typical_batch(case)
    ours = Ours(case.config, device)
    if name != WHOLE:
        LEVERS[name](ours.trainer)
    if name != MEMORY:
        keep_freed_memory()  # as the command line does
    take_turns(connection, partial(ours.step, batch), device, threads)


def measure(case: Case, seconds: float, threads: int) -> dict[str, Any]:
    """The row of a case with at most MOST_IMAGES; ratios are null where too few rounds were undisturbed."""
    case = replace(case, batch_size=min(case.batch_size, MOST_IMAGES))
    contestants = {name: Contestant(serve, case, name, threads) for name in (WHOLE, *levers_of(case))}
    kept, disturbed = race(contestants, seconds, ALLOWED)
    for contestant in contestants.values():
        contestant.finish()
    row: dict[str, Any] = {"case": case.name, "images": case.batch_size, "threads": threads, "rounds": len(kept)}
    row |= {"rounds_disturbed": disturbed, "longer_without": None}
    if len(kept) >= FEWEST:
        ratios = {name: [each[name] / each[WHOLE] for each in kept] for name in levers_of(case)}
        row["longer_without"] = {name: Spread.of(each).as_dict() for name, each in ratios.items()}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Times as long without each path, with quartiles, in Markdown."""
    lines = [f"| case | images | n | {' | '.join(LEVERS)} |", "|" + "---|" * (len(LEVERS) + 3)]
    for row in rows:
        found = row["longer_without"] or {}
        cells = (str(Spread(**found[name])) if name in found else "" for name in LEVERS)
        lines.append(f"| {row['case']} | {row['images']} | {row['rounds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=90.0, help="undisturbed seconds of each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the table from the result file")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.report else []
    for name in () if options.report else options.cases:
        rows.append(measure(CASES[name], options.seconds, options.threads))
        environment = describe_environment()
        options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n", "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
