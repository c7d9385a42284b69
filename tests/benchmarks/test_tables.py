"""The tables in the documents are those that the committed scripts print from the committed results."""

import json
from pathlib import Path

import pytest

from benchmarks import (
    compiled,
    data,
    demo,
    embed,
    evaluations,
    features,
    footprint,
    index,
    levers,
    loading,
    masks,
    parity,
    peers,
    precision,
    presets,
    scaling,
    step,
    theory,
    time_to_accuracy,
    trace,
)

ROOT = Path(__file__).parents[2]
DOCUMENTED = {
    "README.md": {demo.RESULTS: lambda: [demo.table(demo.RESULTS)]},
    "docs/data.md": {
        data.RESULTS: lambda: [data.report(json.loads(data.RESULTS.read_text()))],
        index.RESULTS: lambda: [index.report(json.loads(index.RESULTS.read_text()))],
    },
    "docs/export.md": {
        parity.RESULTS: lambda: [parity.table(json.loads(parity.RESULTS.read_text())["rows"])],
        embed.RESULTS: lambda: [embed.report()],
    },
    "docs/scale.md": {footprint.RESULTS: lambda: [footprint.report()]},
    "docs/evaluation.md": {
        evaluations.RESULTS: lambda: [evaluations.report()],
        features.RESULTS: lambda: [features.report()],
    },
    "docs/performance.md": {
        peers.RESULTS: lambda: [peers.table(peers.RESULTS)],
        levers.RESULTS: lambda: [levers.table(json.loads(levers.RESULTS.read_text())["rows"])],
        trace.RESULTS: lambda: [trace.table(trace.RESULTS)],
        loading.RESULTS: lambda: [loading.report(json.loads(loading.RESULTS.read_text()))],
        masks.RESULTS: lambda: [masks.report(json.loads(masks.RESULTS.read_text()))],
        time_to_accuracy.RESULTS: lambda: [
            time_to_accuracy.report(json.loads(time_to_accuracy.RESULTS.read_text())["rows"])
        ],
        compiled.RESULTS: lambda: [compiled.report(json.loads(compiled.RESULTS.read_text()))],
        scaling.RESULTS: lambda: scaling.report(json.loads(scaling.RESULTS.read_text())["rows"]).split("\n\n"),
        precision.RESULTS: lambda: [precision.report(json.loads(precision.RESULTS.read_text()))],
        masks.BEFORE: lambda: [masks.report(json.loads(masks.BEFORE.read_text()))],
    },
    "docs/results.md": {
        demo.RESULTS: lambda: [demo.table(demo.RESULTS), demo.differences(demo.RESULTS)],
        presets.RESULTS: lambda: [presets.report()],
        step.RESULTS: lambda: [step.table(step.RESULTS)],
    },
    "docs/theory.md": {theory.RESULTS: lambda: [theory.section()]},
}


@pytest.mark.parametrize(
    ("document", "results"),
    [(document, results) for document, tables in DOCUMENTED.items() for results in tables],
    ids=lambda value: Path(value).name,
)
def test_the_table_is_the_one_of_the_results(document: str, results: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for table in DOCUMENTED[document][results]():
        assert table in text
