"""Everything that waits for a GPU, unattended, in calls of under ten minutes each.

    make gpu                                        # all of it
    python -m benchmarks.gpu --budget 540 [--reference DIR] [--data cifar10=DIR]     # one call

An agenda of pieces, each a process of its own with a time of its own: the tests that need a GPU, then images per second
and utilisation of every size and way (throughput.py), the public I-JEPA step (peers.py, with --reference, a checkout of
facebookresearch/ijepa), and the study of accuracy (study.py). A call does what still fits into its budget and writes
benchmarks/results/gpu.json after every piece; it ends with 75 while there is more, 1 if a piece failed, else 0. A piece
that failed is kept with its last words and not tried again, unless with --retry. `--report` prints the table.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.throughput import NAMES, WAYS
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "gpu.json"
MORE = 75
_LAST_WORDS = 2000


@dataclass(frozen=True)
class Piece:
    """A command of `python`, the seconds that it may take, and whether its last line of output is a row of results.

    needs: modules without which it is skipped. continues: it may end with 75, and goes on in the next call.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    is_row: bool = False
    needs: tuple[str, ...] = ()
    continues: bool = False


def agenda(device: str, toy: bool, reference: Path | None, data: Sequence[str]) -> list[Piece]:
    """All pieces in their order; what tells most comes first."""
    pieces = [] if toy else [Piece("tests", ("-m", "pytest", "-q", "-m", "gpu"), 420)]
    small = ("--toy", "--steps", "2") if toy else ()
    for way in WAYS:
        for size in NAMES[:1] if toy else NAMES:
            command = ("-m", "benchmarks.throughput", "--size", size, "--way", way, "--device", device, *small)
            needs = ("lightly", "timm") if way == "lightly" else ()
            pieces.append(Piece(f"throughput {size} {way}", command, 180, is_row=True, needs=needs))
    if reference is not None and not toy:
        out = str(RESULTS.with_name("gpu-peers.json"))
        command = ("-m", "benchmarks.peers", "--reference", str(reference), "--device", device, "--out", out)
        pieces.append(Piece("public step", (*command, "--seconds", "20"), 400, needs=("benchmarks.peers",)))
    if not toy:
        command = ("-m", "benchmarks.study", "--device", device, "--budget", "450s")
        sources = ("--data", *data) if data else ()
        pieces.append(Piece("study", (*command, *sources), 500, needs=("benchmarks.study",), continues=True))
    return pieces


class Results:
    """The result file: what became of every piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pieces: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.pieces = json.loads(path.read_text(encoding="utf-8"))["pieces"]

    def settled(self, piece: Piece, retry: bool) -> bool:
        """Whether there is nothing to do about a piece."""
        state = self.pieces.get(piece.name, {}).get("state")
        return state in ("done", "skipped") or (state == "failed" and not retry)

    def note(self, piece: Piece, **facts: Any) -> None:
        """Keep what became of a piece."""
        self.pieces[piece.name] = {"seconds_allowed": piece.seconds, **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stored = {"environment": describe_environment(), "pieces": self.pieces}
        self.path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def call(pieces: Sequence[Piece], results: Results, budget: float, retry: bool) -> int:
    """Do what fits into so many seconds; the exit code."""
    until, started = time.monotonic() + budget, False
    for piece in pieces:
        if results.settled(piece, retry):
            continue
        missing = [name for name in piece.needs if find_spec(name) is None]
        if missing:
            results.note(piece, state="skipped", why=f"{', '.join(missing)} is not installed")
            continue
        if started and time.monotonic() + piece.seconds > until:
            return MORE
        started = True
        print(f"{piece.name}: at most {piece.seconds:.0f} seconds", flush=True)
        results.note(piece, **_done(piece, min(piece.seconds, until - time.monotonic())))
    states = [results.pieces[piece.name]["state"] for piece in pieces]
    return MORE if "more" in states else 1 if "failed" in states else 0


def _done(piece: Piece, seconds: float) -> dict[str, Any]:
    """What became of a piece that was run now."""
    began = time.monotonic()
    try:
        answer = subprocess.run(
            [sys.executable, *piece.command], capture_output=True, text=True, timeout=max(seconds, 1.0), check=False
        )
    except subprocess.TimeoutExpired:
        return {"state": "failed", "why": f"it was not done after {seconds:.0f} seconds"}
    took = {"seconds": round(time.monotonic() - began, 1)}
    if answer.returncode == MORE and piece.continues:
        return {"state": "more", **took}
    if answer.returncode not in (0, *((5,) if piece.name == "tests" else ())):  # 5: pytest found no test
        return {"state": "failed", "why": (answer.stdout + answer.stderr)[-_LAST_WORDS:], **took}
    row = {"row": json.loads(answer.stdout.splitlines()[-1])} if piece.is_row else {}
    return {"state": "done", **took, **row, **({} if row else {"said": answer.stdout[-_LAST_WORDS:]})}


def report(results: Results) -> str:
    """The rates as a table in Markdown, each beside our plain step of the same size; then what is missing."""
    rows = {name: piece["row"] for name, piece in results.pieces.items() if "row" in piece}
    plain = {row["size"]: row["images_per_second"] for row in rows.values() if row["way"] == "cjepa"}
    lines = [
        "| size | way | batch | images/s | times cjepa | utilisation, % | peak memory, GB | host waits in a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        ratio = f"{row['images_per_second'] / plain[row['size']]:.2f}" if row["size"] in plain else ""
        used = "" if row["utilisation"] is None else f"{100 * row['utilisation']:.1f}"
        waits = ", ".join(f"{count:g} {name}" for name, count in row["synchronisations_per_step"].items() if count)
        cells = [row["size"], row["way"], row["batch_size"], f"{row['images_per_second']:,.1f}", ratio, used]
        cells += [f"{row['peak_memory'] / 1e9:.1f}", waits or "none"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    other = [f"- {name}: {piece['state']}" for name, piece in results.pieces.items() if "row" not in piece]
    return "\n".join([*lines, *(["", *other] if other else [])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds of this call")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/ijepa, to measure against")
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=DIR", help="folders for the study")
    parser.add_argument("--toy", action="store_true", help="a toy model, to try the agenda without a GPU")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    results, code = Results(options.out), 0
    if not options.report:
        pieces = agenda(options.device, options.toy, options.reference, options.data)
        code = call(pieces, results, options.budget, options.retry)
    print(report(results))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
