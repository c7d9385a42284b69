"""A preset on real images: does it beat its untrained start?

    python -m benchmarks.presets cifar10 DIR training.epochs=4

trains the preset on DIR with the changes given, evaluates k-NN and linear probes, and adds the rows to
benchmarks/results/presets.json. `--report` prints the tables from that file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.demo import spread, train_and_evaluate, write
from cjepa.config.presets import resolve

RESULTS = Path(__file__).parent / "results" / "presets.json"


def measure(preset: str, data: Path, changes: list[str], scratch: Path) -> None:
    """Train, evaluate and add the rows; rows of the same run are replaced."""
    config = resolve(preset, [f"data={data}", *changes])
    run = " ".join([preset, data.name, *changes])
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    added = train_and_evaluate("trained", config, scratch / run.replace(" ", "_").replace("/", "-"))
    rows = [row for row in rows if row["run"] != run] + [{"run": run} | row for row in added]
    write(RESULTS, rows)


def report() -> str:
    """One table for each run, as Markdown."""
    rows = json.loads(RESULTS.read_text())["rows"]
    lines: list[str] = []
    for run in dict.fromkeys(row["run"] for row in rows):
        lines += [
            "",
            f"`{run}`",
            "",
            "| features | 20-NN | 20-NN, centred | linear | effective rank | images seen | seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in (row for row in rows if row["run"] == run):
            values = [row["knn_20"], row["knn_20_centred"], row["linear"], row.get("effective_rank")]
            cells = ["" if value is None else spread([value]) for value in values]
            cells += [f"{row[name]:,.0f}" if row.get(name) else "" for name in ("images_seen", "seconds")]
            lines.append(f"| {row['features']} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?")
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/presets"))
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report:
        measure(arguments.preset, arguments.data, arguments.changes, arguments.scratch)
    print(report())


if __name__ == "__main__":
    main()
