"""The study: its plan can be run, a run becomes a file whatever comes of it, the document says what the files say."""

import json
import signal
import time
from pathlib import Path

import pytest

from benchmarks import study as script
from benchmarks import study_figures
from benchmarks.study import config_of, seconds_of, study
from benchmarks.study_plan import COLLAPSE, PARTS, PLAIN, WIDE, Condition, Recipe, Run, StudyPart, planned
from benchmarks.study_report import CENTRED, DOCUMENT, LINEAR, blocks, ends, filled, paired, spread
from benchmarks.study_results import RESULTS, Result, load, save, written
from cjepa.errors import StorageError
from tests.test_runs import SMALL_DEMO

SOURCES = {"cifar10": Path("images"), "clothing": Path("images")}
SMALL = Recipe("small", "small", "demo", (*SMALL_DEMO, "logging.report=false"), folder=False)


def run_of(name: str, *changes: str) -> Run:
    condition = Condition(name, changes, "group")
    return Run(StudyPart("part", SMALL, "cpu", (condition,), 1), condition, 0)


def whole_plan() -> list[Run]:
    return planned("cpu") + planned("cuda")


def test_every_run_of_the_plan_has_a_name_of_its_own() -> None:
    keys = [run.key for run in whole_plan()]
    assert len(set(keys)) == len(keys) == sum(len(part.conditions) * part.seeds for part in PARTS)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_condition_is_a_config_that_differs_from_the_others(part: StudyPart) -> None:
    configs = [
        config_of(Run(part, condition, 0), SOURCES, part.device).model_dump_json() for condition in part.conditions
    ]
    assert len(set(configs)) == len(configs)


def test_the_order_answers_something_however_early_it_ends() -> None:
    runs = planned("cpu")
    first = next(part for part in PARTS if part.name == "convergence-tiles")
    count = len(first.conditions)
    assert {run.condition.name for run in runs[:count]} == {each.name for each in first.conditions}
    assert {run.seed for run in runs[:count]} == {0}
    assert runs[count].part.recipe is COLLAPSE


def test_runs_become_files_and_failures_do_not_stop_the_others(tmp_path: Path) -> None:
    runs = [
        run_of("refused", "training.batch_size=1000"),
        run_of("diverging", "training.optimizer.learning_rate.peak=1e30", "training.most_skipped=1", "objective=ijepa"),
        run_of("two views", "objective=vicreg", "objective.projector.width=16"),
    ]
    assert study(runs, {}, tmp_path / "scratch", time.monotonic() + 1000.0, tmp_path / "results") == 0
    found = load(tmp_path / "results")
    assert [found[run.key]["outcome"] for run in runs] == ["failed", "diverged", "finished"]
    assert "batch size 1000" in found[runs[0].key]["error"]
    good = found[runs[2].key]
    assert [row["images"] for row in good["curve"]] == [0, 108]
    assert {"effective_rank", "knn_20_centred", "std_smallest"} <= good["curve"][-1].keys()
    assert {"loss", "similarity", "variance", "covariance"} <= good["losses"][-1].keys()
    assert len(good["spectrum"]) == 32
    assert good["spectrum"] == sorted(good["spectrum"], reverse=True)
    assert good["changes"] == runs[2].changes
    assert good["environment"]["packages"]["torch"]
    assert str(tmp_path) not in json.dumps(found), "no paths of a machine"


def test_when_the_time_is_over_nothing_more_is_started(tmp_path: Path) -> None:
    assert study([run_of("late")], {}, tmp_path / "scratch", time.monotonic() - 1, tmp_path / "results") == 75
    assert load(tmp_path / "results") == {}


def test_a_run_that_was_interrupted_is_continued(tmp_path: Path) -> None:
    run, scratch, results = run_of("slow", "objective=ijepa", "training.epochs=200"), tmp_path / "s", tmp_path / "r"
    assert study([run], {}, scratch, time.monotonic() + 4.0, results) == 75
    assert load(results) == {}, "only finished runs are results"
    # The rest of it is not waited for: that it goes on from its checkpoint is what tests/faults show.
    assert (scratch / run.key / "config.yaml").is_file()


def test_time_that_ends_while_a_trained_run_is_measured_stops_the_study_as_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> Result:
        for _ in range(200):
            time.sleep(0.05)
        return {"outcome": "finished"}

    def killed(*_: object) -> None:
        raise AssertionError("the signal would have ended the process with code -15")

    monkeypatch.setattr(script, "carry_out", slow)
    before = signal.signal(signal.SIGTERM, killed)
    try:
        assert study([run_of("slow")], {}, tmp_path / "scratch", time.monotonic() + 0.3, tmp_path / "results") == 75
    finally:
        signal.signal(signal.SIGTERM, before)
    assert load(tmp_path / "results") == {}


def test_a_run_that_could_not_be_recorded_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Result:
        raise StorageError("the disk is full")

    monkeypatch.setattr(script, "carry_out", full)
    assert study([run_of("full")], {}, tmp_path / "scratch", time.monotonic() + 60.0, tmp_path / "results") == 1
    assert load(tmp_path / "results") == {}


def invented(part: StudyPart) -> dict[str, Result]:
    """Results of a whole part: condition number c with seed s ends at 30 + c + s; the second run of all diverged."""
    results = {}
    for number, condition in enumerate(part.conditions):
        for seed in range(part.seeds):
            names = ("knn_20", "knn_20_centred", "linear", "effective_rank", "spread")
            first = {"images": 0} | dict.fromkeys(names, 20.0 + seed)
            last = {"images": 100} | dict.fromkeys(names, 30.0 + number + seed)
            results[Run(part, condition, seed).key] = {
                "part": part.name,
                "group": condition.group,
                "condition": condition.name,
                "seed": seed,
                "outcome": "diverged" if number == 1 else "finished",
                "verdict": None if number == 1 else "collapse" if number == 2 else "healthy",
                "curve": [first, last],
                "spectrum": [2.0, 1.0, 0.0],
                "environment": {
                    "cpu": {"model": "CPU", "threads": 1},
                    "packages": {"torch": "2"},
                    "commit": {"hash": "0123456789abcdef", "changed": False},
                },
            }
    return results


def test_the_tables_by_hand() -> None:
    parts = {part.name: part for part in PARTS}
    methods, grid, choices, predictors = (
        parts[name] for name in ("convergence-tiles", "collapse", "sensitivity", "predictors")
    )
    found = blocks(invented(methods) | invented(grid) | invented(choices) | invented(predictors))
    assert f"| {PLAIN} | 3 | 31.0 ± 1.0 | 31.0 ± 1.0 | 31.0 ± 1.0 | 31.0 ± 1.0 |" in found["convergence-tiles"]
    assert "| untrained | 3 | 21.0 ± 1.0 |" in found["convergence-tiles"]
    assert f"| {methods.conditions[4].name} | +4.0 ± 0.0 " in found["convergence-tiles"]
    assert f"Diverged with at least one seed: {methods.conditions[1].name}." in found["convergence-tiles"]
    assert f"{methods.conditions[2].name}: linear | {methods.conditions[6].name}: 20-NN" in found["course"]
    assert "| crops of 18 photographs | 100 | +2.0 ± 0.0 | +2.0 ± 0.0 | +6.0 ± 0.0 | +6.0 ± 0.0 |" in found["course"]
    name = grid.conditions[0].name
    cells = "150 / 150 / +10.0 | 155 / 155 / +11.0, diverged | 160 / 160 / +12.0, collapse | 165 / 165 / +13.0 |"
    assert f"| {name} | {cells}" in found["collapse"]
    assert "| base recipe | as it is | 3 | 31.0 ± 1.0 | 31.0 ± 1.0 | 31.0 ± 1.0 |  |  |" in found["sensitivity"]
    assert f"{WIDE} | 3 | 31.0 ± 1.0 | 31.0 ± 1.0 | 31.0 ± 1.0 |  |  |" in found["predictors"]
    assert "32.0 ± 1.0 | 32.0 ± 1.0 | 32.0 ± 1.0 | +1.0 ± 0.0 | +1.0 ± 0.0 |" in found["predictors"]
    assert "| collapse | crops of 18 photographs, 24 px, 4 epochs | cpu | 46 | 45 | 1 | 0 | 0 |" in found["state"]


def test_the_figures_show_every_run() -> None:
    parts = {part.name: part for part in PARTS}
    methods, grid = parts["convergence-tiles"], parts["collapse"]
    lines = study_figures.curves(methods, list(invented(methods).values()))
    assert [len(axes.lines) for axes in lines.axes] == [len(methods.conditions)] * 3
    own = list(invented(grid).values())
    diagram = study_figures.phases(grid, own)
    assert [len(axes.texts) for axes in diagram.axes[:2]] == [len(grid.conditions)] * 2
    assert len(study_figures.spectra(grid, own).axes[0].lines) == 5


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("1.5h", 5400), ("7", 7)])
def test_budgets(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_the_document_says_what_the_results_say() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert filled(document, blocks(load(RESULTS))) == document, "run python -m benchmarks.study --report"


def test_what_the_text_says_of_repeated_runs() -> None:
    """Plain I-JEPA is in two parts with the same recipe and seeds: how far a run is from itself."""
    results = load(RESULTS).values()

    def of(part: str, condition: str) -> list[Result]:
        return [each for each in results if (each["part"], each["condition"]) == (part, condition)]

    again, first = of("sensitivity", "none (I-JEPA)"), of("convergence-tiles", PLAIN)
    assert {tuple(each["changes"]) for each in again} == {tuple(each["changes"]) for each in first}
    text = " ".join(DOCUMENT.read_text(encoding="utf-8").split())
    for measure in (CENTRED, LINEAR):
        difference = paired(ends(again, measure), ends(first, measure)).partition(" (")[0]
        assert difference in text


def test_the_results_are_those_of_the_plan() -> None:
    """A condition that changes its meaning needs another name, or new runs."""
    plan = {run.key: run.changes for run in whole_plan()}
    results = load(RESULTS)
    assert {key: result["changes"] for key, result in results.items()} == {key: plan.get(key) for key in results}


def test_its_figures_are_there() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![") and "study-" in line]
    assert all((DOCUMENT.parent / path).is_file() for path in shown)


def test_a_number_that_was_changed_is_noticed() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    changed = document.replace("69.5 | 83.6", "99.5 | 83.6")
    assert changed != document
    assert filled(changed, blocks(load(RESULTS))) == document


def test_a_block_that_is_missing_is_an_error() -> None:
    with pytest.raises(KeyError, match="state"):
        filled("<!-- study: other -->\n\n<!-- end -->\n", {"state": "text"})


def test_results_are_json_again(tmp_path: Path) -> None:
    result = {"a": 1, "rows": [{"x": 1.5}, {"x": None}], "empty": [], "list": [1, 2]}
    save("key", result, tmp_path)
    assert load(tmp_path) == {"key": result}
    assert written(result).count("\n") == 9


def test_spread_and_paired_test_by_hand() -> None:
    """t = mean / (sd / sqrt(n)) = 2 / (1 / sqrt(3)) = 3.46 with 2 degrees of freedom: p = 0.074."""
    base = {0: 10.0, 1: 20.0, 2: 30.0}
    values = {2: 33.0, 0: 11.0, 1: 22.0, 7: 99.0}
    assert paired(values, base) == "+2.0 ± 1.0 (p 0.07)"
    assert spread({0: 1.0, 1: 3.0}) == "2.0 ± 1.4"
    assert paired({0: 1.0}, base) == "-9.0"
    assert paired({0: 11.0, 1: 21.01, 2: 31.02}, base) == "+1.0 ± 0.0 (p < 0.001)"
    assert spread({}) == paired({}, base) == ""
