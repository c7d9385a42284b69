"""Everything that waits for a GPU, unattended, in calls of under ten minutes each; what tells most comes first.

    make gpu                                        # all of it
    python -m benchmarks.gpu --budget 540 --out DIR [--reference DIR] [--data cifar10=DIR]     # one call
    python -m benchmarks.gpu --list                 # the agenda, with the seconds that each piece may need
    python -m benchmarks.gpu --merge DIR            # take what a call left in DIR into benchmarks/results

An agenda of pieces, each a process of its own with a time of its own: the tests that need a GPU; images per second,
utilisation and the host's waits of every size and way (throughput.py; with --reference, a checkout of
facebookresearch/ijepa, also of the public step), ViT-B, L and H first; loss and gradient beside the public ones
(peers.py); the study of accuracy (study.py). A call does what still fits into its budget. After every piece gpu.json in
the folder of results (--out, or CJEPA_GPU_OUT, else benchmarks/results) is replaced as a whole, and gpu.log there has
all that was said, so that a call that is killed loses its last piece alone. It ends with 75 while there is more, 1 if a
piece failed, else 0. A piece that failed is kept with its last words and not tried again, unless with --retry; what
only the budget cut off is tried in the next call. Results in another folder than benchmarks/results hold the files that
pieces wrote. `--report` prints the tables.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peer_steps
from benchmarks.throughput import NAMES, WAYS
from cjepa.training.environment import describe_environment

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "results"
MORE = 75
BUDGET = "BUDGET"
_TO_END = 60
"""Seconds that a piece which plans its time has besides, to start and to save."""
_LAST_WORDS = 2000
_PEER_CASES = ("vit-b16-224px-bfloat16", "vit-b16-224px-float32")
_SECONDS = {"cjepa": 35, "cjepa-compiled": 80, "public": 45, "lightly": 40, "stable-pretraining": 50}
"""What a process of a way is expected to need for ViT-B on an H100, from start to end: guessed, not measured."""
_SLOWER = {"large": 1.3, "huge": 1.8}
"""How many times that for larger models: weights to draw, blocks to compile."""
_FIRST = (
    *(("base", way) for way in ("cjepa", "cjepa-compiled", "public")),
    *((size, way) for size in ("large", "huge") for way in ("cjepa-compiled", "cjepa")),
    *(("base", way) for way in ("lightly", "stable-pretraining")),
    *((size, "public") for size in ("large", "huge")),
)
"""Sizes and ways that answer what is asked most: ours beside the public step at ViT-B, utilisation at ViT-L and H."""


@dataclass(frozen=True)
class Piece:
    """A command of `python`.

    expected, limit: the seconds that must be left for it to start, and after which it is stopped; BUDGET in the command
    stands for those that it may plan with. is_row: its last line of JSON is a row of results. absent: what it lacks and
    is skipped for. continues: it may end with 75, and goes on in the next call. writes: the place of files of its own
    below benchmarks/results.
    """

    name: str
    command: tuple[str, ...]
    expected: float
    limit: float
    is_row: bool = False
    absent: str = ""
    continues: bool = False
    writes: str = ""


def agenda(device: str, toy: bool, reference: Path | None, data: Sequence[str]) -> list[Piece]:
    """All pieces in their order."""
    rest = [(size, way) for size in NAMES for way in WAYS if (size, way) not in _FIRST]
    cases = [(NAMES[0], way) for way in WAYS] if toy else [*_FIRST, *rest]
    rates = [_throughput(size, way, device, toy, reference) for size, way in cases]
    if toy:
        return rates
    return [_tests(), *rates[:3], _agreement(device, reference), *rates[3:], _study(device, data)]


def _tests() -> Piece:
    """Only the files that have such tests: a machine that lacks what others import need not collect those."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    names = (str(path.relative_to(ROOT)) for path in files)
    return Piece("tests", ("-m", "pytest", "-v", "-m", "gpu", "--timeout", "60", *names), 90, 150)


def _throughput(size: str, way: str, device: str, toy: bool, reference: Path | None) -> Piece:
    command = ["-m", "benchmarks.throughput", "--size", size, "--way", way, "--device", device]
    command += ["--toy", "--steps", "2"] if toy else []
    absent = [f"{name} is not installed" for name in peer_steps.missing(way)]
    if way == "public":
        command += ["--reference", str(reference)]
        absent += [] if reference else ["no --reference"]
    seconds = _SECONDS[way] * _SLOWER.get(size, 1.0)
    limit = 400 if toy else 3 * seconds  # a toy runs on whatever machine, busy ones included
    return Piece(f"throughput {size} {way}", tuple(command), seconds, limit, True, ", ".join(absent))


def _agreement(device: str, reference: Path | None) -> Piece:
    """Loss and gradient beside those of the public code, on the device."""
    command = ("-m", "benchmarks.peers", "--reference", str(reference), "--device", device, "--cases", *_PEER_CASES)
    told = ("--contestants", "public", "cjepa", "--seconds", "5", "--out", str(FOLDER / "gpu-peers.json"))
    absent = "" if reference else "no --reference"
    return Piece("public step", (*command, *told), 80, 200, absent=absent, writes="gpu-peers.json")


def _study(device: str, data: Sequence[str]) -> Piece:
    command = ("-m", "benchmarks.study", "--device", device, "--budget", BUDGET, "--data", *data)
    absent = "" if data else "no --data"
    return Piece("study", command, 180, 540, absent=absent, continues=True, writes="study")


class Results:
    """gpu.json in a folder: what became of every piece; beside it gpu.log, all that they said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.log = folder, folder / "gpu.json", folder / "gpu.log"
        self.pieces: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.pieces = json.loads(self.path.read_text(encoding="utf-8"))["pieces"]

    def settled(self, piece: Piece, retry: bool) -> bool:
        """Whether there is nothing to do about a piece."""
        state = self.pieces.get(piece.name, {}).get("state")
        return state == "done" or (state == "failed" and not retry)

    def note(self, name: str, facts: dict[str, Any]) -> None:
        """Keep what became of a piece, and the row and the files that it has given before."""
        before = self.pieces.get(name, {})
        kept = {key: before[key] for key in ("row", "files") if key in before}
        files = {"files": kept.get("files", {}) | facts["files"]} if "files" in facts else {}
        self.pieces[name] = kept | facts | files
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".writing")
        written.write_text(json.dumps({"pieces": self.pieces}, indent=1) + "\n", encoding="utf-8")
        written.replace(self.path)  # a call may be killed at any time


def call(pieces: Sequence[Piece], results: Results, budget: float, retry: bool) -> int:
    """Do what fits into so many seconds, in order; the exit code."""
    until = time.monotonic() + budget
    left = [piece for piece in pieces if not results.settled(piece, retry)]
    for piece in left:
        if piece.absent:
            results.note(piece.name, {"state": "skipped", "why": piece.absent})
    possible = [piece for piece in left if not piece.absent]
    # A budget that is too short for any of them still starts one, so that calls come to an end.
    for piece in [piece for piece in possible if piece.expected <= budget] or possible[:1]:
        seconds = until - time.monotonic()
        if min(piece.expected, budget) <= seconds or piece is possible[0]:
            print(f"{piece.name}: {min(piece.limit, seconds):.0f} seconds at most", flush=True)
            results.note(piece.name, _done(piece, results, seconds))
    states = [results.pieces.get(piece.name, {}).get("state") for piece in pieces]
    if {None, "more", "cut off"} & {*states}:
        return MORE
    return 1 if "failed" in states else 0


def _done(piece: Piece, results: Results, left: float) -> dict[str, Any]:
    """What became of a piece that was run now."""
    began, mark = time.monotonic(), time.time()
    seconds = max(min(piece.limit, left), 1.0)
    code, said = _run(piece, results.log, seconds)
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    row = _row(said) if piece.is_row else None
    # A row says itself where it was measured; the file does not, since calls are made on several machines and merged.
    found |= {"environment": describe_environment()} if row is None else {"row": row}
    if piece.writes and results.folder.resolve() != FOLDER.resolve():
        found["files"] = _written(FOLDER / piece.writes, mark)
    if code == 0 and (row is not None or not piece.is_row):
        return {"state": "done", **found, **({} if piece.is_row else {"said": said[-_LAST_WORDS:]})}
    if code == MORE and piece.continues:
        return {"state": "more", **found}
    if code is not None:
        return {"state": "failed", "why": said[-_LAST_WORDS:], **found}
    twice = results.pieces.get(piece.name, {}).get("state") == "cut off"
    state = "failed" if twice or seconds == piece.limit else "cut off"
    return {"state": state, "why": f"it was not done after {seconds:.0f} seconds", **found}


def _run(piece: Piece, log: Path, seconds: float) -> tuple[int | None, str]:
    """The exit code, None where it was stopped, and what was said; nothing that the piece started stays."""
    log.parent.mkdir(parents=True, exist_ok=True)
    planned = f"{max(seconds - _TO_END, 1):.0f}s"
    with log.open("ab") as stream:
        stream.write(f"\n== {piece.name}\n".encode())
        stream.flush()
        start = stream.tell()
        process = subprocess.Popen(
            [sys.executable, "-u", *(planned if part == BUDGET else part for part in piece.command)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={"TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / "cjepa-gpu-compiled"), **os.environ},
            start_new_session=True,
        )
        code = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with log.open("rb") as stream:
        stream.seek(start)
        return code, stream.read().decode(errors="replace")


def _row(said: str) -> dict[str, Any] | None:
    """The last whole line of JSON."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                return row
    return None


def _written(place: Path, since: float) -> dict[str, str]:
    """The files there that are newer than a moment, by their names below benchmarks/results."""
    files = [place] if place.is_file() else sorted(place.glob("*.json"))
    new = [path for path in files if path.stat().st_mtime >= since]
    return {str(path.relative_to(FOLDER)): path.read_text(encoding="utf-8") for path in new}


def merge(source: Results, into: Results) -> None:
    """Take over what was found in another folder: its pieces, unless ours are done, and their files."""
    for name, piece in source.pieces.items():
        for file, text in piece.pop("files", {}).items():
            target = into.folder / file
            assert target.resolve().is_relative_to(into.folder.resolve()), file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        if into.pieces.get(name, {}).get("state") != "done":
            into.note(name, piece)


def report(results: Results) -> str:
    """The rates as a table in Markdown, each beside the public step and our plain one on the same device; the rest."""
    rows = [piece["row"] for piece in results.pieces.values() if "row" in piece]
    rows.sort(key=lambda row: (row["device"], NAMES.index(row["size"]), WAYS.index(row["way"])))
    rates = {(row["device"], row["size"], row["way"]): row["images_per_second"]["median"] for row in rows}
    columns = ["device", "size", "way", "batch", "n", "images/s", "times public", "times cjepa", "utilisation, %"]
    columns += ["of the fastest product, %", "peak memory, GB", "host waits in a step"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        rate = row["images_per_second"]
        beside = [rates.get((row["device"], row["size"], way)) for way in ("public", "cjepa")]
        cells = [row["device"], row["size"], row["way"], row["batch_size"], row["bursts"]]
        cells.append(f"{rate['median']:,.1f} ({rate['low']:,.1f} to {rate['high']:,.1f})")
        cells += ["" if other is None else f"{rate['median'] / other:.2f}" for other in beside]
        cells.append("" if row["utilisation"] is None else f"{100 * row['utilisation']:.1f}")
        cells += [f"{100 * row['of_the_fastest_product']:.1f}", f"{row['peak_memory'] / 1e9:.1f}", _waits(row)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    other = [
        f"- {name}: {piece['state']}{_reason(piece)}"
        for name, piece in results.pieces.items()
        if "row" not in piece or piece["state"] != "done"
    ]
    return "\n".join([*lines, *(["", *other] if other else [])])


def _waits(row: dict[str, Any]) -> str:
    """How often the host waits for the device in a step, by call; none is what is aimed at."""
    counts = row["synchronisations_per_step"]
    if counts is None:
        return "not counted"
    return ", ".join(f"{count:g} {name}" for name, count in counts.items() if count) or "none"


def _reason(piece: dict[str, Any]) -> str:
    """Of what was not done: the last line that was said."""
    lines = piece.get("why", "").strip().splitlines()
    return f" ({lines[-1]})" if lines else ""


def _listed(pieces: Sequence[Piece], results: Results) -> str:
    """The agenda with states and seconds."""
    lines, sum_of = [], 0.0
    for piece in pieces:
        state = results.pieces.get(piece.name, {}).get("state", "to do")
        state = f"lacks: {piece.absent}" if piece.absent and state != "done" else state
        sum_of += 0.0 if state == "done" or piece.absent else piece.expected
        lines.append(f"{piece.name:<38} about {piece.expected:4.0f} s, {sum_of:5.0f} s so far; {state}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds of this call")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/ijepa, to measure against")
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=DIR", help="folders for the study")
    parser.add_argument("--toy", action="store_true", help="a toy model, to try the agenda without a GPU")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("CJEPA_GPU_OUT", FOLDER)), metavar="DIR")
    parser.add_argument("--list", action="store_true", help="say what the agenda is, and do nothing")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="take the results of another folder into --out")
    parser.add_argument("--report", action="store_true", help="print the tables alone")
    options = parser.parse_args()
    reference = None if options.reference is None else options.reference.resolve()
    pieces = agenda(options.device, options.toy, reference, options.data)
    results, code = Results(options.out.resolve()), 0
    if options.list:
        print(_listed(pieces, results))
        return 0
    if options.merge is not None:
        merge(Results(options.merge), results)
    elif not options.report:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(MORE))  # so that the piece in flight ends too
        code = call(pieces, results, options.budget, options.retry)
    print(report(results))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
