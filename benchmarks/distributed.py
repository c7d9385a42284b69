"""Which cases of the matrix of ranks and engines were run, and how they ended.

    python -m benchmarks.distributed                    # runs pytest -m distributed
    python -m benchmarks.distributed --reports *.xml    # gathers what earlier calls of pytest --junitxml left

Writes benchmarks/results/distributed.json, one line a test; `--report` prints how many there are of each. A test that
was not run in this commit is not in it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "distributed.json"


def outcomes(report: Path) -> list[dict[str, Any]]:
    """Name, outcome and seconds of every test in a report of pytest."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        ends = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{case.attrib['classname'].rpartition('.')[2]}::{case.attrib['name']}"
        found.append({"test": name, "outcome": ends[0] if ends else "passed", "seconds": float(case.attrib["time"])})
    return found


def run(report: Path) -> None:
    """The whole matrix, in one process."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "distributed", f"--junitxml={report}"]
    subprocess.run(command, check=False)


def table(results: dict[str, Any]) -> str:
    """Tests of each function and how they ended, as Markdown."""
    counts = Counter((each["test"].partition("[")[0], each["outcome"]) for each in results["tests"])
    lines = ["| test | outcome | cases |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{test}` | {end} | {count} |" for (test, end), count in sorted(counts.items()))])


def main() -> None:
    """Run or gather, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, nargs="*", help="reports of pytest --junitxml to gather")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        with tempfile.TemporaryDirectory() as folder:
            reports = options.reports or [Path(folder) / "report.xml"]
            if not options.reports:
                run(reports[0])
            tests = [each for report in reports for each in outcomes(report)]
        content = {"environment": describe_environment(), "tests": sorted(tests, key=lambda each: each["test"])}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
