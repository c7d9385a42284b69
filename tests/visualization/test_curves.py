import math
from itertools import pairwise

import pytest

from cjepa.visualization import save, training_curves
from cjepa.visualization.curves import COLUMNS, PANELS, number, row_sizes
from cjepa.visualization.style import FAINT, look

VICREG = ("similarity", "variance", "covariance", "vicreg")
TERMS = {"prediction": 0.3, "gradient_norm": 0.5, "loss": 1.0, "learning_rate": 1e-3, "momentum": 0.99}
MEASURED = {"knn_20": 60.0, "knn_20_centred": 61.0, "effective_rank": 9.0, "explained_variance": 0.4, "spread": 0.7}


def run(terms=VICREG, measured=MEASURED, steps=60, offset=0.0):
    train = dict.fromkeys(terms, 2.0) | TERMS
    rows = []
    for step in range(0, steps + 1, 10):
        if step % 20 == 0:
            values = {name: value + offset + 0.1 * step for name, value in measured.items()}
            rows.append({"step": step, "split": "evaluation", **values})
        if step:
            rows.append({"step": step, "split": "train", **{name: value / step for name, value in train.items()}})
    return rows


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def panel(figure, title):
    return figure.axes[titles(figure).index(title)]


def numbers(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_run_has_a_panel_for_each_of_its_values():
    assert titles(training_curves({"run": run()})) == [
        "20-NN accuracy (%)",
        "20-NN accuracy, centred features (%)",
        "Effective rank",
        "Explained target variance",
        "Prediction loss",
        "Similarity term, unweighted",
        "Variance term, unweighted",
        "Covariance term, unweighted",
        "Gradient norm",
    ]


def test_runs_of_different_terms_share_the_panels_they_have_in_common():
    figure = training_curves({"I-JEPA": run(terms=()), "C-JEPA": run(), "SIGReg": run(terms=("similarity", "sigreg"))})
    by_title = {
        title: sum(len(line.get_xdata()) > 2 for line in panel(figure, title).lines) for title in titles(figure)
    }
    assert by_title["Prediction loss"] == 3
    assert by_title["Similarity term, unweighted"] == 2
    assert by_title["Variance term, unweighted"] == by_title["SIGReg term, unweighted"] == 1
    assert legend(figure) == ["I-JEPA", "C-JEPA", "SIGReg", "before training"]


def test_a_run_keeps_its_colour_in_panels_that_the_first_run_lacks():
    figure = training_curves({"I-JEPA": run(terms=()), "C-JEPA": run()})
    assert panel(figure, "Variance term, unweighted").lines[0].get_color() == look(1)[0]


def test_retrieval_where_there_are_no_labels():
    figure = training_curves({"run": run(measured={"crop_retrieval": 3.0})})
    assert titles(figure)[0] == "Image found by another crop (%)"
    assert not any("NN" in title for title in titles(figure))


def test_the_untrained_level_is_a_dashed_line_with_its_number():
    axes = panel(training_curves({"run": run()}), "20-NN accuracy (%)")
    curve, level = axes.lines
    assert set(level.get_ydata()) == {60.0}
    assert level.is_dashed()
    assert curve.get_ydata().tolist() == [60.0, 62.0, 64.0, 66.0]
    assert numbers(axes) == ["66.0", "60.0"]


def test_one_level_for_runs_that_start_alike_and_one_each_otherwise():
    alike = panel(training_curves({"a": run(), "b": run()}), "Effective rank")
    different = panel(training_curves({"a": run(), "b": run(offset=1.0)}), "Effective rank")
    assert [line.get_color() for line in alike.lines if line.is_dashed()] == [FAINT]
    assert [line.get_color() for line in different.lines if line.is_dashed()] == [look(0)[0], look(1)[0]]


def test_no_level_without_an_evaluation_before_the_first_step():
    later = [row for row in run() if row["step"] > 0]
    figure = training_curves({"run": later})
    assert not any(line.is_dashed() for axes in figure.axes for line in axes.lines)
    assert legend(figure) == ["run"]


def test_without_evaluations_only_what_was_minimised(tmp_path):
    figure = training_curves({"run": [row for row in run(terms=()) if row["split"] == "train"]})
    assert titles(figure) == ["Prediction loss", "Gradient norm"]
    save(figure, tmp_path / "curves.png")


@pytest.mark.parametrize("rows", [{}, {"run": []}, {"run": [{"step": 3, "split": "train", "prediction": math.nan}]}])
def test_nothing_to_show_is_said(rows, tmp_path):
    figure = training_curves(rows)
    assert figure.axes == []
    assert any("no values yet" in text.get_text() for text in figure.texts)
    save(figure, tmp_path / "curves.png")


@pytest.mark.parametrize("row", [run()[0], run()[1]])
def test_a_single_row_is_a_mark(row, tmp_path):
    figure = training_curves({"run": [row]})
    assert figure.axes
    assert all(axes.lines[0].get_marker() == "o" for axes in figure.axes)
    save(figure, tmp_path / "curves.png")


def test_a_diverged_run_says_so():
    rows = [{"step": step, "split": "train", "prediction": 0.5 if step < 5 else math.nan} for step in range(1, 20)]
    assert numbers(training_curves({"run": rows}).axes[0]) == ["0.500 → NaN"]


def test_many_rows_become_few_points_with_a_band():
    rows = [{"step": step, "split": "train", "prediction": 1 / step} for step in range(1, 20_001)]
    figure = training_curves({"run": rows})
    assert len(figure.axes[0].lines[0].get_xdata()) < 1000
    assert len(figure.axes[0].collections) == 1
    assert legend(figure) == ["run", "10th to 90th percentile"]


def test_values_over_decades_have_a_logarithmic_axis_and_negative_ones_do_not():
    def scale(values):
        rows = [{"step": step, "split": "train", "prediction": value} for step, value in enumerate(values)]
        return training_curves({"run": rows}).axes[0].get_yscale()

    assert scale([1e-3, 1.0, 100.0]) == "log"
    assert scale([1.0, 2.0, 10.0]) == "linear"
    assert scale([-1.0, 1e-3, 100.0]) == "linear"


def test_rounding_errors_are_not_magnified():
    rows = [{"step": step, "split": "train", "prediction": 0.1 + 1e-15 * step} for step in range(20)]
    low, high = training_curves({"run": rows}).axes[0].get_ylim()
    assert high - low > 0.01


def test_all_panels_have_the_same_steps_on_their_axis():
    assert len({axes.get_xlim() for axes in training_curves({"a": run(), "b": run(steps=200)}).axes}) == 1


def test_numbers_beside_the_curves_do_not_overlap():
    figure = training_curves({f"seed {seed}": run(offset=1e-3 * seed) for seed in range(8)})
    for axes in figure.axes:
        heights = sorted(text.xy[1] for text in axes.texts)
        assert all(above - below > 0.099 for below, above in pairwise(heights))


def test_more_runs_than_colours_differ_in_their_lines():
    figure = training_curves({f"seed {seed}": run(offset=seed) for seed in range(16)})
    lines = panel(figure, "Prediction loss").lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 16
    assert numbers(panel(figure, "Effective rank")) == []


def test_names_are_text_whatever_is_in_them(tmp_path):
    names = ["$\\frac{", "_hidden", "<b>\n\tx</b>", "犬の写真", "n" * 300, "a_b^c\\"]
    figure = training_curves({name: run() for name in names})
    shown = legend(figure)
    assert shown[0] == "\\$\\frac{"
    assert shown[1].strip() == "_hidden"
    assert shown[2] == "<b> x</b>"
    assert len(shown[4]) == 40
    save(figure, tmp_path / "curves.png")


def test_the_title_says_how_far():
    assert training_curves({"run": run()}).get_suptitle() == "Training curves of run to step 60"
    assert training_curves({"a": run(), "b": run(steps=100)}).get_suptitle() == "Training curves of 2 runs to step 100"


@pytest.mark.parametrize("panels", range(1, len(PANELS) + 1))
def test_rows_of_panels_are_full(panels):
    sizes = row_sizes(panels)
    assert sum(sizes) == panels
    assert max(sizes) <= COLUMNS
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.71, "0.710"), (71.75, "71.8"), (100.0, "100"), (-0.5536, "−0.554"), (0.0, "0.00")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_values_without_a_lower_end_do_not_hide_the_others():
    rows = [
        {"step": step, "split": "evaluation", "explained_variance": value} for step, value in ((0, -4000.0), (9, 0.6))
    ]
    [axes] = training_curves({"run": rows}).axes
    assert axes.get_ylim() == pytest.approx((-1.0, 0.7))
