"""Differences and their uncertainty, held against scipy and formulas; tables with missing values."""

import math

import numpy as np
import pytest
from scipy import stats

from cjepa.visualization.report.comparison import Sample, compare, difference
from cjepa.visualization.report.material import Evaluation
from cjepa.visualization.report.runs import group_by_seed, probe_curve, probe_protocol
from tests.report_material import evaluation, few_rows, run


def test_the_difference_of_seeds_is_welchs_interval() -> None:
    first, second = (61.2, 63.0, 60.1), (65.4, 66.0, 67.9, 64.8)
    found = difference(Sample(first, 200), Sample(second, 200))
    interval = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(second) - np.mean(first))
    assert found.value - found.margin == pytest.approx(interval.low)
    assert found.value + found.margin == pytest.approx(interval.high)
    assert found.over == "seeds"


def test_the_difference_of_single_runs_covers_the_noise_of_test_images() -> None:
    found = difference(Sample((50.0,), 400), Sample((60.0,), 400))
    assert found.margin == pytest.approx(1.96 * 100 * math.sqrt(0.25 / 400 + 0.24 / 400))
    draws = np.random.default_rng(0).binomial(400, [[0.5], [0.6]], (2, 20_000)) / 4.0
    covered = np.abs(draws[1] - draws[0] - 10.0) <= found.margin
    assert covered.mean() == pytest.approx(0.95, abs=0.01)
    assert str(found) == "+10.0 ± 6.9"
    assert "within noise" in str(difference(Sample((60.0,), 400), Sample((58.0,), 400)))


def test_a_value_that_is_no_share_has_no_made_up_uncertainty() -> None:
    found = difference(Sample((5.0,), 0), Sample((15.0,), 0))
    assert math.isnan(found.margin)
    assert str(found) == "+10.0"


def test_equal_seeds_have_no_spread() -> None:
    assert difference(Sample((5.0, 5.0), 100), Sample((6.0, 6.0), 100)).margin == 0.0


def test_runs_of_equal_identity_and_other_seeds_are_one_group() -> None:
    members = [run(str(seed), identity="a", seed=seed) for seed in range(3)]
    again = run("again", identity="a", seed=0)
    groups = group_by_seed([*members, again, run("b", identity="b")])
    assert [[each.name for each in group.runs] for group in groups] == [["0", "1", "2"], ["again"], ["b"]]


def test_the_table_has_baselines_runs_and_differences() -> None:
    values = [evaluation({"linear": 50.0}, "untrained", 0), evaluation({"linear": 10.0}, "raw pixels", 0)]
    first = run("first", evaluations=[*values, evaluation({"linear": 80.0}), evaluation({"linear": 1.0}, step=10)])
    second = run("second", evaluations=[evaluation({"linear": 90.0})], rows=few_rows(offset=2.0))
    table = compare(group_by_seed([first, second]))
    assert table.baselines == ("raw pixels", "untrained")
    rows = {row.title: row for row in table.rows}
    assert rows["linear (linear)"].baselines == ("10.0", "50.0")
    assert rows["linear (linear)"].groups == ("80.0", "90.0")
    assert rows["linear (linear)"].differences == ("+10.0 ± 6.9",)
    assert rows["knn_20_centred (while training)"].groups == ("71.0", "73.0")
    assert rows["knn_20_centred (while training)"].baselines == ("", "31.0 / 33.0"), "each run's own first evaluation"


def test_a_learning_rate_or_a_deviation_beside_an_accuracy_is_no_share_of_images() -> None:
    one = {"lowshot_1_percent": 50.0, "lowshot_1_percent_std": 2.0}
    runs = [run(name, evaluations=[evaluation(one)], rows=[]) for name in ("first", "second")]
    rows = {row.title: row for row in compare(group_by_seed(runs)).rows}
    assert rows["lowshot_1_percent (linear)"].basis == "test images alone"
    assert rows["lowshot_1_percent_std (linear)"].differences == ("+0.0",)


def test_each_encoder_has_its_own_untrained_start() -> None:
    """The protocol says nothing of the encoder: a small and a large one have different values to beat."""
    small = [evaluation({"linear": 50.0}, "untrained", 0), evaluation({"linear": 80.0})]
    large = [evaluation({"linear": 55.0}, "untrained", 0), evaluation({"linear": 85.0})]
    runs = [run("small", evaluations=small), run("large", evaluations=large, rows=few_rows(offset=2.0))]
    rows = {row.title: row for row in compare(group_by_seed(runs)).rows}
    assert rows["linear (linear)"].baselines == ("50.0 / 55.0",)
    assert rows["knn_20_centred (while training)"].baselines == ("31.0 / 33.0",)
    alone = {row.title: row for row in compare(group_by_seed(runs[:1])).rows}
    assert alone["linear (linear)"].baselines == ("50.0",)


def test_the_curve_of_a_probe_is_of_one_protocol() -> None:
    """Accuracies of four layers and of the last one are no points of one line."""
    four = {"name": "linear", "protocol": '{"layers": 4}', "test_images": 200}
    own = [evaluation({"linear": 50.0}, "untrained", 0), evaluation({"linear": 70.0}, step=20)]
    own += [evaluation({"linear": 80.0}), Evaluation(step=40, encoder="target", values={"linear": 90.0}, **four)]
    groups = group_by_seed([run(evaluations=own), run("other", evaluations=[own[-1]])])
    curve = probe_curve(groups[0], probe_protocol(groups[:1]))
    assert curve is not None
    assert (curve.steps.tolist(), curve.line.tolist()) == ([0.0, 20.0, 40.0], [50.0, 70.0, 80.0])
    assert probe_curve(groups[1], probe_protocol(groups[:1])) is None
    assert probe_protocol(groups) == four["protocol"], "of as many, the later one"
    assert probe_protocol([]) is None


def test_values_of_different_protocols_are_not_compared() -> None:
    first = run("first", evaluations=[evaluation({"linear": 80.0})], rows=[])
    other = evaluation({"linear": 90.0})
    other = type(other)(**{**vars(other), "protocol": "another"})
    table = compare(group_by_seed([first, run("second", evaluations=[other], rows=[])]))
    assert [row.differences for row in table.rows] == [("",), ("",)]


def test_without_any_value_there_is_no_table() -> None:
    assert compare(group_by_seed([run(evaluations=[], rows=[])])).rows == ()


def test_what_a_run_began_with_is_not_called_untrained_if_it_was_trained() -> None:
    rows = {row.title: row for row in compare(group_by_seed([run("fresh")])).rows}
    assert rows["knn_20_centred (while training)"].baselines == ("31.0",)
    rows = {row.title: row for row in compare(group_by_seed([run("further", started=True)])).rows}
    assert rows["knn_20_centred (while training)"].baselines == ("",)
    assert rows["linear (linear)"].baselines == ("50.0",)
