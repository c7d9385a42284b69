"""The page as HTML: complete, self-contained, accessible, escaped, and good with pieces missing."""

import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cjepa.visualization.report import Judgement, render
from cjepa.visualization.report.pictures import colour_strips
from cjepa.visualization.series import MOST_POINTS
from tests.report_material import evaluation, few_rows, rows, run, samples, snapshot

HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements with their attributes, in order, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open[-1:]):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(*runs: Any, **options: Any) -> tuple[Page, str]:
    text = render(runs, "0.1.0", **options)
    return Page(text), text


@pytest.fixture(scope="module")
def whole() -> tuple[Page, str]:
    return page(run("C-JEPA"), run("I-JEPA", rows=rows(offset=1.0)))


def test_every_part_of_the_page_is_there(whole: tuple[Page, str]) -> None:
    found, _ = whole
    ids = {attributes.get("id") for _, attributes in found.elements}
    assert ids >= {"verdict", "evaluations", "curves", "representation", "masks", "data"}
    for text in (
        *("Attention", "Patch features as colours", "Which patches are alike", "Nearest neighbours", "Map of the"),
        *("Covariance spectrum", "Standard deviations", "Similarity term, weighted", "Similarity term, unweighted"),
        *("Learning rate", "Weight decay", "Momentum of the target", "Gradient norm", "Linear evaluation (%)"),
        *("Effective rank", "Explained target variance", "Images per second", "Patches in the context"),
        *("Prediction error, C-JEPA", "Crops as the model sees them", "Sizes", "broken.png: truncated", "Duplicates"),
        *("no class token", "C-JEPA, target", "C-JEPA, context", "I-JEPA, target", "I-JEPA minus C-JEPA"),
    ):
        assert text in found.text, text


def test_the_probe_while_training_and_the_evaluation_are_two_plots() -> None:
    probed = [row | {"linear": 55.0 + row["step"]} if row["split"] == "evaluation" else row for row in few_rows()]
    found, _ = page(run(rows=probed))
    labels = [svg.get("aria-label") or "" for svg in found.all("svg")]
    assert any(label == "Linear probe accuracy (%) against steps: run from 55.0 to 95.0" for label in labels)
    assert any(label == "Linear evaluation (%) against steps: run from 50.0 to 80.0" for label in labels)
    assert "linear (while training)" in found.text


def test_colours_of_runs_share_a_frame() -> None:
    """A run whose features are the other's, mirrored and in another order, has the same pictures."""
    first = run("first", rows=few_rows())
    turned = [replace(each, patches=3.0 - each.patches.flip(-1)) for each in first.snapshots]
    one, other = colour_strips([first, run("other", rows=few_rows(), snapshots=turned)])
    assert [overlay.address for overlay in other.overlays] == [overlay.address for overlay in one.overlays]
    assert (one.details, other.details) == ([], ["r 1.00 with the first"] * 3)
    later = colour_strips([first, run("later", rows=few_rows(), snapshots=[replace(turned[2], step=50)])])
    assert len(later[1].overlays) == 1
    assert later[1].details != ["r 0.00 with the first"]
    found, _ = page(first, run("other", rows=few_rows(), snapshots=turned))
    assert "turned (rotation or reflection only) to agree best with those of first" in found.text


def test_the_verdict_comes_first(whole: tuple[Page, str]) -> None:
    found, _ = whole
    texts = (
        "healthy",
        "What was run",
        "Accuracies are percent",
        "The number at the right",
        "no class token",
        "Duplicates",
    )
    places = [found.text.index(text) for text in texts]
    assert places == sorted(places)


def test_elements_are_closed_and_ids_are_unique(whole: tuple[Page, str]) -> None:
    found, _ = whole
    assert found.unbalanced == []
    assert found.open == []
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    known = set(ids)
    for _, attributes in found.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert attributes.get(name) is None or attributes[name] in known
    for reference in re.findall(r"url\(#([^)]+)\)", whole[1]):
        assert reference in known


def test_nothing_is_asked_for_from_anywhere(whole: tuple[Page, str]) -> None:
    found, text = whole
    for _, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    assert not re.search(r"url\((?!data:|#)", text)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_pictures_have_texts_and_headings_an_order(whole: tuple[Page, str]) -> None:
    found, _ = whole
    assert all(image["alt"] for image in found.all("img"))
    for tag, attributes in found.elements:
        if attributes.get("role") in ("img", "application", "group") or tag == "canvas":
            assert attributes.get("aria-label") or attributes.get("aria-labelledby"), (tag, attributes)
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert found.all("html")[0]["lang"] == "en"


def test_what_can_be_operated_has_a_name(whole: tuple[Page, str]) -> None:
    found, _ = whole
    labels = {label.get("for") for label in found.all("label")}
    assert all(slider["id"] in labels for slider in found.all("input"))
    assert len(found.all("select")) == 2
    assert all(canvas["tabindex"] == "0" for canvas in found.all("canvas"))


def test_curves_are_drawn_against_steps_epochs_and_hours(whole: tuple[Page, str]) -> None:
    found, _ = whole
    assert {attributes.get("data-axis") for _, attributes in found.elements} >= {"steps", "epochs", "hours"}
    assert [button["value"] for button in found.all("button") if "value" in button] == ["steps", "epochs", "hours"]


def test_both_runs_stand_in_the_same_plots(whole: tuple[Page, str]) -> None:
    labels = [svg.get("aria-label") or "" for svg in whole[0].all("svg")]
    joint = [label for label in labels if "C-JEPA from" in label and "I-JEPA from" in label]
    assert len(joint) > 30


def test_texts_of_the_user_are_escaped() -> None:
    hostile = run(
        HOSTILE,
        rows=few_rows(),
        facts=[(HOSTILE, HOSTILE)],
        config=HOSTILE,
        judgement=Judgement("healthy", HOSTILE, HOSTILE),
        unreadable=[(HOSTILE, HOSTILE)],
        notes=[HOSTILE],
        samples=samples().__class__(**{**vars(samples()), "example_names": (HOSTILE,) * 3}),
    )
    found, text = page(hostile, run("other", rows=few_rows(), evaluations=[evaluation({HOSTILE: 1.0})]))
    assert "<script>alert" not in text
    assert HOSTILE in found.text
    assert found.unbalanced == []
    assert len(found.all("script")) == 3, "similarities, palette, script"


@pytest.mark.parametrize(
    "missing",
    [
        {"rows": []},
        {"rows": few_rows(0)},
        {"snapshots": [], "samples": None},
        {"snapshots": [snapshot(0)]},
        {"clock": None},
        {"samples": samples(labelled=False), "classes": ()},
        {"masks": []},
        {"evaluations": [], "unreadable": []},
        {"rows": [], "snapshots": [], "samples": None, "masks": [], "clock": None, "evaluations": [], "facts": []},
        {"rows": [{"step": 10, "split": "train", "loss": float("nan")}]},
    ],
    ids=lambda missing: ", ".join(missing),
)
def test_a_run_with_missing_pieces_has_a_page(missing: dict[str, Any]) -> None:
    found, text = page(run(**{"rows": few_rows(), "weights": {}} | missing, notes=["something is missing"]))
    assert found.unbalanced == []
    assert "healthy" in found.text
    assert "something is missing" in found.text
    assert not re.search(r"\bnan\b", found.text)
    assert len(text) > 10_000
    links = {link["href"] for link in found.all("a")}
    ids = {f"#{attributes['id']}" for _, attributes in found.elements if attributes.get("id")}
    assert links <= ids, "the navigation leads to parts that are there"


def test_a_page_of_a_run_that_goes_on_is_read_again() -> None:
    _, live = page(run(rows=[], snapshots=[], samples=None), live=True)
    _, still = page(run(rows=[], snapshots=[], samples=None))
    assert '<meta http-equiv="refresh"' in live
    assert 'http-equiv="refresh"' not in still


def test_the_script_asks_for_nothing_that_older_browsers_of_clusters_lack() -> None:
    """An unknown selector ends the whole script: no axes, no slider, no similarities. :has came to Firefox with 121."""
    _, text = page(run(snapshots=[], samples=None))
    assert ":has(" not in text


def test_seeds_become_one_curve_with_a_band() -> None:
    seeds = [run(f"seed {seed}", identity="same", seed=seed, rows=few_rows(offset=float(seed))) for seed in range(3)]
    found, _ = page(*seeds, run("another", rows=few_rows()))
    assert "seed 0, mean of 3 seeds" in found.text
    assert "seed 1, mean" not in found.text
    labels = [svg.get("aria-label") or "" for svg in found.all("svg")]
    accuracy = next(label for label in labels if label.startswith("20-NN accuracy, centred (%) against steps"))
    assert "seed 0 from 32.0 to 72.0" in accuracy, "the mean of 31, 32, 33 and of 71, 72, 73"


def test_a_hundred_thousand_rows_take_seconds_and_few_points() -> None:
    terms = {"loss": 1.0, "prediction": 0.5, "learning_rate": 1e-3, "momentum": 0.99, "gradient_norm": 1.0}
    many = [{"step": step, "split": "train", **terms} for step in range(1, 100_001)]
    start = time.process_time()
    _, text = page(run(rows=many, clock=(np.array([0.0, 1e5]), np.array([0.0, 9e5])), snapshots=[], samples=None))
    assert time.process_time() - start < 30
    assert len(text) < 2_000_000
    longest = max(len(re.findall("L ", path)) for path in re.findall(r' d="([^"]*)"', text))
    assert longest <= 2 * MOST_POINTS + 2


def test_a_dozen_runs_stay_far_below_the_limit() -> None:
    """Three values of as many points as there can be: a run has up to eight times as many values."""
    runs = [run(f"run {index}", rows=few_rows(1600, offset=float(index)), weights={}) for index in range(12)]
    _, text = page(*runs)
    assert len(text) < 15_000_000 / 8
