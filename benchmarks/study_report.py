"""Tables of the study, from the files in benchmarks/results/study/ alone; docs/results.md holds them between markers.

A block of that document begins with a line `<!-- study: NAME -->` and ends with `<!-- end -->`; the report rewrites
what is between them and leaves the rest as it is.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scipy.stats import ttest_rel

from benchmarks import study_figures
from benchmarks.study_plan import PARTS, UNTRAINED, StudyPart
from benchmarks.study_results import RESULTS, Result, load

DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"
CENTRED, LINEAR, RANK = "knn_20_centred", "linear", "effective_rank"
MEASURES = {"knn_20": "20-NN", CENTRED: "20-NN, centred", LINEAR: "linear", RANK: "effective rank"}
CONVERGENCE = ("convergence-tiles", "convergence-cifar10", "convergence-clothing")
FOLLOWED = ("C-JEPA on the context, beta 1", "C-JEPA, beta 0.001 (the paper's)")
"""Methods whose lead over plain I-JEPA is told over the course of training."""
NEEDED = 2
"""Seeds below which there is neither a spread nor a test."""

THEIRS = (
    ("neither (I-JEPA)", "63.7", "82.5", "52.3"),
    ("variance and covariance", "68.3", "83.2", "54.6"),
    ("invariance", "67.6", "82.8", "53.9"),
    ("both (C-JEPA)", "69.5", "83.6", "55.2"),
)
"""Mo & Tong (2024), ViT-B/16, 100 epochs of ImageNet-1K; which row is which is our reading of their table."""
THEIRS_LONG = (("I-JEPA", "72.9", "83.5", "56.2"), ("C-JEPA", "73.7", "84.5", "57.5"))
"""The same after 600 epochs."""

Values = dict[int, float]
"""A value for each seed."""


def write_report() -> None:
    """Rewrite the blocks of docs/results.md and draw the figures they show."""
    results = load(RESULTS)
    study_figures.draw(results)
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8"), blocks(results)), encoding="utf-8")


def filled(document: str, found: Mapping[str, str]) -> str:
    """A document with its blocks replaced; KeyError for a block that is not in it."""
    for name, text in found.items():
        pattern = re.compile(rf"(<!-- study: {re.escape(name)} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        places = list(pattern.finditer(document))
        if len(places) != 1:
            raise KeyError(f"{name}: {len(places)} blocks in the document")
        first, last = places[0].span()
        document = f"{document[:first]}{places[0][1]}\n{text}\n{places[0][2]}{document[last:]}"
    return document


def blocks(results: Mapping[str, Result]) -> dict[str, str]:
    """The text of every block, by name."""
    parts = {part.name: part for part in PARTS}
    found = {"state": state(results), "paper": paper()}
    for name in CONVERGENCE:
        found[name] = convergence(parts[name], results)
    found["course"] = course([parts[name] for name in CONVERGENCE], results)
    found["collapse"] = collapse(parts["collapse"], results)
    found |= {name: choices(parts[name], results) for name in ("sensitivity", "predictors")}
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def state(results: Mapping[str, Result]) -> str:
    """What of the plan was run, where and with what."""
    rows = []
    for part in PARTS:
        own = of_part(results, part)
        outcomes = [result["outcome"] for result in own]
        planned = len(part.conditions) * part.seeds
        counts = [str(outcomes.count(each)) for each in ("finished", "diverged", "failed")]
        rows.append([part.name, part.recipe.title, part.device, str(planned), *counts, str(planned - len(own))])
    header = ["part", "images and length", "device", "runs planned", "finished", "diverged", "failed", "not run"]
    return table(header, rows) + "\n\n" + _made_with(results)


def _made_with(results: Mapping[str, Result]) -> str:
    environments = [result["environment"] for result in results.values()]
    if not environments:
        return "Nothing was run yet."
    machines = sorted({f"{each['cpu']['model']}, {each['cpu']['threads']} thread(s)" for each in environments})
    commits = sorted({(each["commit"] or {"hash": "unknown"})["hash"][:12] for each in environments})
    torch = sorted({each["packages"]["torch"] for each in environments})
    failed = [f"{key} ({each['error']})" for key, each in sorted(results.items()) if each["outcome"] == "failed"]
    text = f"Made with {', '.join(machines)}; torch {', '.join(torch)}; commits {', '.join(commits)}."
    return text + (f" Failed: {'; '.join(failed)}." if failed else "")


def paper() -> str:
    """The paper's own figures."""
    header = ["VICReg terms", "linear", "fine-tuned", "DAVIS (J&F)m"]
    return (
        "Theirs, not ours: ViT-B/16, ImageNet-1K, 100 epochs.\n\n"
        + table(header, THEIRS)
        + "\n\nTheirs, the same after 600 epochs.\n\n"
        + table(["method", *header[1:]], THEIRS_LONG)
    )


def convergence(part: StudyPart, results: Mapping[str, Result]) -> str:
    """The methods at their end, and each against plain I-JEPA seed by seed."""
    own = of_part(results, part)
    if not own:
        return f"None of the {len(part.conditions) * part.seeds} planned runs was made yet."
    named = {each.name: [result for result in own if result["condition"] == each.name] for each in part.conditions}
    rows = [_baseline_row(name, own) for name in ("raw pixels", "colour statistics")]
    rows.append(_row(UNTRAINED, {measure: starts(own, measure) for measure in MEASURES}))
    rows += [_row(name, {m: ends(each, m) for m in MEASURES}) for name, each in named.items() if each]
    text = table(["features", "n", *MEASURES.values()], [row for row in rows if row[1] != "0"])
    text += "\n\n" + _differences(part.reference, named, {measure: starts(own, measure) for measure in MEASURES})
    diverged = sorted({result["condition"] for result in own if result["outcome"] == "diverged"})
    text += f"\n\nDiverged with at least one seed: {', '.join(diverged)}." if diverged else ""
    return text + f"\n\n![Accuracy and effective rank over training]({study_figures.link(part.name)})"


def _baseline_row(name: str, own: Sequence[Result]) -> list[str]:
    found = {result["seed"]: result["baselines"][name] for result in own if "baselines" in result}
    values = {m: {seed: each[m] for seed, each in found.items()} for m in MEASURES if m != RANK}
    return _row(name, values | {RANK: {}})


def _row(name: str, values: Mapping[str, Values]) -> list[str]:
    return [name, str(max(map(len, values.values()))), *(spread(values[measure]) for measure in MEASURES)]


def _differences(reference: str, named: Mapping[str, Sequence[Result]], untrained: Mapping[str, Values]) -> str:
    base = {measure: ends(named[reference], measure) for measure in MEASURES}
    others = {UNTRAINED: untrained} | {
        name: {measure: ends(each, measure) for measure in MEASURES}
        for name, each in named.items()
        if each and name != reference
    }
    rows = [
        [name, *(paired(values[measure], base[measure]) for measure in MEASURES)] for name, values in others.items()
    ]
    return table([f"minus {reference}", *MEASURES.values()], rows)


def course(parts: Sequence[StudyPart], results: Mapping[str, Result]) -> str:
    """How far two readings of C-JEPA are ahead of plain I-JEPA at every evaluation, seed by seed."""
    rows = []
    for part in parts:
        own = [result for result in of_part(results, part) if result.get("curve")]
        base, *others = (
            [result for result in own if result["condition"] == name] for name in (part.reference, *FOLLOWED)
        )
        for images in sorted({row["images"] for result in base for row in result["curve"]} - {0}):
            leads = [
                paired(_after(runs, measure, images), _after(base, measure, images))
                for runs in others
                for measure in (CENTRED, LINEAR)
            ]
            rows.append([part.recipe.title.partition(",")[0], f"{images:,}", *leads])
    header = [f"{name}: {measure}" for name in FOLLOWED for measure in ("20-NN, centred", "linear")]
    return table(["data", "images seen", *header], rows)


def collapse(part: StudyPart, results: Mapping[str, Result]) -> str:
    """Effective rank and spread at the end of each short run, as shares of the untrained encoder's."""
    own = of_part(results, part)
    if not own:
        return f"None of the {len(part.conditions) * part.seeds} planned runs was made yet."
    groups = list(dict.fromkeys(each.group for each in part.conditions))
    columns = list(dict.fromkeys(each.name for each in part.conditions))
    found = {(result["condition"], result["group"]): result for result in own}
    rows = [[column, *(_phase(found.get((column, group))) for group in groups)] for column in columns]
    text = table(["", *groups], [row for row in rows if any(row[1:])])
    diagram, lines = study_figures.link(part.name), study_figures.link(f"{part.name}-spectra")
    return text + f"\n\n![Phase diagram of collapse]({diagram})\n\n![Effective rank and spectra of runs]({lines})"


def _phase(result: Result | None) -> str:
    """Rank, spread and accuracy, each against the start."""
    if result is None:
        return ""
    if result["outcome"] == "failed" or not result["curve"]:
        return result["outcome"]
    first, last = result["curve"][0], result["curve"][-1]
    shares = [100 * last[name] / first[name] for name in (RANK, "spread")]
    text = f"{shares[0]:.0f} / {shares[1]:.0f} / {last[CENTRED] - first[CENTRED]:+.1f}"
    notes = ["diverged"] if result["outcome"] == "diverged" else []
    notes += [result["verdict"]] if result["verdict"] in ("collapse", "partial collapse") else []
    return text + (f", {', '.join(notes)}" if notes else "")


def choices(part: StudyPart, results: Mapping[str, Result]) -> str:
    """One choice changed at a time, against the part's reference."""
    own = of_part(results, part)
    base = [result for result in own if result["condition"] == part.reference]
    if not base:
        return f"None of the {len(part.conditions) * part.seeds} planned runs was made yet."
    rows = []
    for condition in part.conditions:
        runs = [each for each in own if (each["group"], each["condition"]) == (condition.group, condition.name)]
        if not runs:
            continue
        cells = [spread(ends(runs, measure)) for measure in (CENTRED, LINEAR, RANK)]
        against = ["", ""]
        if condition.name != part.reference:
            against = [paired(ends(runs, measure), ends(base, measure)) for measure in (CENTRED, LINEAR)]
        rows.append([condition.group, condition.name, str(len(runs)), *cells, *against])
    header = ["question", "choice", "n", "20-NN, centred", "linear", "effective rank"]
    return table([*header, "20-NN, centred, minus the first", "linear, minus the first"], rows)


def of_part(results: Mapping[str, Result], part: StudyPart) -> list[Result]:
    """The results of a part that are in the plan, in any order."""
    return [result for result in results.values() if result["part"] == part.name]


def ends(runs: Sequence[Result], measure: str) -> Values:
    """The last value of each seed's run that has one."""
    return _at(runs, measure, -1)


def starts(runs: Sequence[Result], measure: str) -> Values:
    """The value of each seed's untrained encoder: the same for every method."""
    return _at(runs, measure, 0)


def _after(runs: Sequence[Result], measure: str, images: int) -> Values:
    """The value of each seed's run after so many images, where it was evaluated there."""
    rows = {result["seed"]: row for result in runs for row in result["curve"] if row["images"] == images}
    return {seed: row[measure] for seed, row in sorted(rows.items()) if row.get(measure) is not None}


def _at(runs: Sequence[Result], measure: str, place: int) -> Values:
    rows = {result["seed"]: result["curve"][place] for result in runs if result.get("curve")}
    return {seed: row[measure] for seed, row in sorted(rows.items()) if row.get(measure) is not None}


def spread(values: Values) -> str:
    """Mean ± standard deviation over seeds."""
    found = list(values.values())
    if not found:
        return ""
    if len(found) < NEEDED:
        return f"{found[0]:.1f}"
    return f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}"


def paired(values: Values, base: Values) -> str:
    """The mean of the differences of equal seeds ± their standard deviation, and the p of a paired t-test."""
    seeds = sorted(values.keys() & base.keys())
    gains = [values[seed] - base[seed] for seed in seeds]
    if not gains:
        return ""
    if len(gains) < NEEDED:
        return f"{gains[0]:+.1f}"
    text = f"{statistics.mean(gains):+.1f} ± {statistics.stdev(gains):.1f}"
    if math.isclose(statistics.stdev(gains), 0.0, abs_tol=1e-9):
        return text  # of equal differences there is no test
    p = float(ttest_rel([values[seed] for seed in seeds], [base[seed] for seed in seeds]).pvalue)
    if p < 0.0005:  # which three digits would call 0
        return f"{text} (p < 0.001)"
    return f"{text} (p {p:.2f})" if p >= 0.01 else f"{text} (p {p:.3f})"
