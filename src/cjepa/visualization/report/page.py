"""From what is known of some runs to one HTML page that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cjepa.visualization.masks import coverage_shares
from cjepa.visualization.report import pictures
from cjepa.visualization.report.comparison import compare
from cjepa.visualization.report.material import RunMaterial
from cjepa.visualization.report.panels import Plot, curve_sections, heat_figure, size_figure, spectrum_figure
from cjepa.visualization.report.runs import AXES, Axis, group_by_seed
from cjepa.visualization.report.svg import to_svg

REFRESH_SECONDS = 30
"""How often a browser reads the page again while the run goes on."""
MOST_FRAMES = 12
_MARKS = {
    "healthy": ("good", "✓"),
    "too early": ("open", "…"),
    "unknown": ("open", "?"),
    "partial collapse": ("warn", "!"),
}
_BAD = ("bad", "✗")
_SHOWN_UNREADABLE = 20
_WORDS = {
    "knn_20_centred": "percent of the test images that get the class of their 20 nearest labelled images, by "
    "embeddings less their mean. Labels serve to measure only.",
    "crop_retrieval": "percent of the images that one crop of them finds again by another crop, among all others.",
    "effective rank": "how many dimensions the embeddings really use. Far below that before training: collapse.",
}


@dataclass(frozen=True)
class Block:
    """Runs that show the same fixed images, with everything that is drawn of them."""

    images: int
    photograph: str
    aspect: float
    names: Sequence[str]
    attention: Sequence[pictures.Strip]
    colours: Sequence[pictures.Strip]
    masks: Sequence[pictures.Strip]
    grid: tuple[int, int]
    similarities: Sequence[pictures.Similarities]
    similarity_grid: tuple[int, int]
    neighbours: Sequence[pictures.Montage]
    maps: Sequence[pictures.Montage]

    @property
    def data(self) -> dict[str, object]:
        """What the page's script needs of the similarities."""
        encoders = [{"matrices": list(each.matrices)} for each in self.similarities]
        return {"grid": list(self.similarity_grid), "images": self.images, "encoders": encoders}


def render(runs: Sequence[RunMaterial], version: str, written: str = "", live: bool = False) -> str:
    """The page of one or several runs. live: a browser is to read it again every REFRESH_SECONDS.

    version, written: of the package, and when, for its last line.

    It holds its styles, script and pictures, and asks for nothing from anywhere. Texts of the runs are escaped.
    """
    assert runs, "a report is of at least one run"
    groups = group_by_seed(runs)
    drawn = [group.runs[0] for group in groups if group.runs[0].snapshots and group.runs[0].samples]
    drawn = drawn[: pictures.MOST_RUNS]
    environment = Environment(
        loader=PackageLoader("cjepa.visualization.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    curves = curve_sections(groups)
    return template.render(
        version=version,
        written=written,
        axes_known=_axes(curves),
        title=", ".join(run.name for run in runs),
        refresh=REFRESH_SECONDS if live else 0,
        runs=[(run, *_MARKS.get(run.judgement.state, _BAD)) for run in runs],
        groups=groups,
        curves=curves,
        spectra=_spectra(drawn),
        blocks=_blocks(drawn),
        frames=_frames(drawn),
        heats=_heats(drawn),
        data=[(run, *_data(run)) for run in _with_other_images(runs)],
        comparison=compare(groups),
        explained={
            name: text for name, text in _WORDS.items() if name in " ".join(run.judgement.evidence for run in runs)
        },
        palette=[[int(255 * share) for share in mpl.colormaps["inferno"](place)[:3]] for place in range(256)],
        most_unreadable=_SHOWN_UNREADABLE,
        several=len(groups) > 1,
        notes=[(run.name, note) for run in runs for note in run.notes],
        left_out=[group.name for group in groups if group.runs[0] not in drawn],
    )


def _axes(curves: Sequence[tuple[str, Sequence[Plot]]]) -> list[Axis]:
    """The axes that there is a plot for."""
    known = {name for _, plots in curves for plot in plots for name in plot.pictures}
    return [axis for axis in AXES if axis in known]


def _frames(runs: Sequence[RunMaterial]) -> list[int]:
    """The steps that the slider goes through."""
    steps = sorted({each.step for run in runs for each in run.snapshots})
    chosen = np.linspace(0, len(steps) - 1, min(MOST_FRAMES, len(steps))).round().astype(int)
    return [steps[index] for index in chosen]


def _blocks(runs: Sequence[RunMaterial]) -> list[Block]:
    """Runs with equal images and patches share their pictures of them."""
    together: list[list[RunMaterial]] = []
    for run in runs:
        for members in together:
            if _same_images(members[0], run):
                members.append(run)
                break
        else:
            together.append([run])
    return [_block(members) for members in together]


def _same_images(first: RunMaterial, second: RunMaterial) -> bool:
    if first.samples is None or second.samples is None:
        return False
    one, other = first.samples.examples, second.samples.examples
    return first.grid == second.grid and one.shape == other.shape and bool(torch.equal(one, other))


def _block(runs: Sequence[RunMaterial]) -> Block:
    samples = runs[0].samples
    assert samples is not None
    address, (height, width) = pictures.photograph_strip(samples)
    similarities, grid = pictures.similarities(runs)
    masks = pictures.mask_strips(runs[0].masks[0], runs[0].grid, len(samples.examples)) if runs[0].masks else []
    return Block(
        images=len(samples.examples),
        photograph=address,
        aspect=width / height,
        names=samples.example_names,
        attention=pictures.attention_strips(runs),
        colours=pictures.colour_strips(runs),
        masks=masks,
        grid=runs[0].grid,
        similarities=similarities,
        similarity_grid=grid,
        neighbours=pictures.neighbour_pictures(runs),
        maps=pictures.map_pictures(runs),
    )


def _spectra(runs: Sequence[RunMaterial]) -> list[Plot]:
    """Spectra of the embeddings of the last snapshot of each run, and of the first."""
    if not runs:
        return []
    ends = {run.name: [run.snapshots[0], run.snapshots[-1]][-len(run.snapshots) :] for run in runs}
    singular = {name: [each.singular_values for each in of_run] for name, of_run in ends.items()}
    deviations = {name: [each.deviations for each in of_run] for name, of_run in ends.items()}
    hint = "solid: the last snapshot, dotted: the first"
    found = [
        ("Covariance spectrum", "standard deviation along each principal axis", singular, "principal axis"),
        ("Standard deviations", "of each feature over images, largest first", deviations, "feature"),
    ]
    return [
        Plot(
            title,
            f"{text}; {hint}",
            {"": to_svg(spectrum_figure(values, label), f"spectrum-{label[0]}", f"{title}: {text}")},
        )
        for title, text, values, label in found
    ]


def _heats(runs: Sequence[RunMaterial]) -> list[Plot]:
    """Coverage of the sampler of the first run, and prediction errors of every run, for each patch."""
    plots = []
    if runs and runs[0].masks:
        names = ("Patches in the context", "Patches in a target block")
        for place, (name, shares) in enumerate(zip(names, coverage_shares(runs[0].masks, runs[0].grid), strict=True)):
            text = f"from {100 * shares.min():.0f} to {100 * shares.max():.0f} % of images"
            figure = heat_figure(100 * shares, "% of images")
            plots.append(Plot(name, text, {"": to_svg(figure, f"coverage-{place}", f"{name}: {text}")}))
    for place, run in enumerate(runs):
        errors = run.snapshots[-1].errors.double().numpy().reshape(run.grid)
        if np.isfinite(errors).any():
            text = f"from {np.nanmin(errors):.2f} to {np.nanmax(errors):.2f}, mean squared error of a feature"
            name = f"Prediction error, {run.name}"
            figure = heat_figure(errors, "mean squared error")
            plots.append(Plot(name, text, {"": to_svg(figure, f"errors-{place}", f"{name}, of each patch: {text}")}))
    return plots


def _with_other_images(runs: Sequence[RunMaterial]) -> list[RunMaterial]:
    """The first run, and every other that was trained on other images than the ones before it."""
    chosen: list[RunMaterial] = []
    for run in runs:
        if not any(_same_images(run, other) for other in chosen):
            chosen.append(run)
    return [run for run in chosen if run.samples is not None or run.unreadable or run is chosen[0]]


def _data(run: RunMaterial) -> tuple[pictures.Montage | None, Markup | str, str, list[pictures.Montage]]:
    """Crops, sizes as a plot and in words, and the most similar images."""
    if run.samples is None:
        return None, "", "", []
    sizes = run.samples.sizes.double().numpy()
    sizes = sizes[sizes.min(axis=1) > 0]
    words, plot = "", Markup("")
    if len(sizes):
        low, middle, high = (np.percentile(sizes, share, axis=0) for share in (0, 50, 100))
        words = (
            f"Of {len(sizes)} images: heights from {low[0]:.0f} to {high[0]:.0f} pixels (median {middle[0]:.0f}), "
            f"widths from {low[1]:.0f} to {high[1]:.0f} (median {middle[1]:.0f})."
        )
        if (low != high).any():
            plot = to_svg(size_figure(sizes), f"sizes-{run.name.encode().hex()[:12]}", words)
    return pictures.crops_picture(run.samples), plot, words, pictures.pair_pictures(run)
