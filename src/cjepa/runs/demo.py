"""`cjepa demo`: C-JEPA and plain I-JEPA on the same images with the same recipe, and what the difference is."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cjepa.config.presets import resolve
from cjepa.errors import InputError
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.ranks import launched
from cjepa.runs.evaluating import COLOUR_STATISTICS, RAW_PIXELS, UNTRAINED, Result, evaluate_run
from cjepa.runs.pictures import PICTURES, draw_pictures
from cjepa.runs.pretraining import Outcome, pretrain
from cjepa.runs.report import PAGE, REPORT, write_report
from cjepa.training.health import standard_error

_log = logging.getLogger(__name__)

PRESET, PLAIN = "demo", "objective=ijepa"
NEIGHBOURS = 20
CJEPA, IJEPA = "C-JEPA", "I-JEPA"


@dataclass(frozen=True)
class Row:
    """The values of one kind of features: accuracies in percent; of encoders also the effective rank."""

    features: str
    knn: float
    knn_centred: float
    linear: float
    rank: float = math.nan
    verdict: str = ""


@dataclass(frozen=True)
class Demo:
    """Both runs, the table of all features, how many test images it rests on, the pictures and the report."""

    cjepa: Outcome
    ijepa: Outcome
    rows: list[Row]
    test_images: int
    pictures: list[Path]
    report: Path

    @property
    def conclusion(self) -> str:
        """What the numbers say, in two sentences."""
        return conclude(self.rows, self.test_images)


def run_demo(folder: Path, changes: Sequence[str] = ()) -> Demo:
    """Train, evaluate and draw both runs in subfolders of `folder`; what an earlier call finished is not repeated."""
    if launched() > 1:
        raise InputError("the demo is for one process; start it without torchrun")
    cjepa_folder, ijepa_folder = folder / "cjepa", folder / "ijepa"
    _log.info("1 of 4: %s", CJEPA)
    cjepa = pretrain(resolve(PRESET, changes), cjepa_folder)
    _log.info("2 of 4: plain %s, the same recipe with %s", IJEPA, PLAIN)
    ijepa = pretrain(resolve(PRESET, [*changes, PLAIN]), ijepa_folder)
    _log.info("3 of 4: k-NN and linear evaluation")
    evaluations = (KnnConfig(k=(NEIGHBOURS,)), LinearConfig())
    found = evaluate_run(cjepa_folder, evaluations)
    plain = evaluate_run(ijepa_folder, evaluations, comparisons=False)
    rows = [
        _row("raw pixels", found, RAW_PIXELS),
        _row("colour statistics", found, COLOUR_STATISTICS),
        _row("untrained encoder", found, UNTRAINED, cjepa.untrained["effective_rank"]),
        _row(IJEPA, plain, "target", ijepa.trained["effective_rank"], ijepa.verdict.state),
        _row(CJEPA, found, "target", cjepa.trained["effective_rank"], cjepa.verdict.state),
    ]
    _log.info("4 of 4: pictures and the report")
    both = {IJEPA: ijepa_folder, CJEPA: cjepa_folder}
    pictures = draw_pictures(both, folder / PICTURES)
    report = write_report(both, folder / REPORT / PAGE)
    return Demo(cjepa, ijepa, rows, found[0].protocol["test_images"], pictures, report)


def _row(features: str, results: Sequence[Result], encoder: str, rank: float = math.nan, verdict: str = "") -> Row:
    values = {name: value for each in results if each.encoder == encoder for name, value in each.values.items()}
    return Row(
        features, values[f"knn_{NEIGHBOURS}"], values[f"knn_{NEIGHBOURS}_centred"], values["linear"], rank, verdict
    )


def conclude(rows: Sequence[Row], test_images: int) -> str:
    """Two sentences about the rows of a demo, of which the last two are the runs: what was learned, and by which.

    Differences within two standard errors of the test images are called noise; other seeds vary on their own.
    """
    *beaten, ijepa, cjepa = rows
    best = max(row.knn_centred for row in beaten), max(row.linear for row in beaten)
    gains = cjepa.knn_centred - ijepa.knn_centred, cjepa.linear - ijepa.linear
    noise = 2.0 * standard_error(cjepa.linear, test_images)
    weight = f"up to {noise:.1f} are noise" if max(map(abs, gains)) > noise else f"no more than noise, {noise:.1f}"
    return (
        f"{CJEPA} reaches {cjepa.knn_centred:.1f} % by {NEIGHBOURS} neighbours (centred) and {cjepa.linear:.1f} % "
        "linearly; against the best of raw pixels, colour statistics and the untrained encoder that is "
        f"{cjepa.knn_centred - best[0]:+.1f} and {cjepa.linear - best[1]:+.1f} points. Against plain {IJEPA}, the same "
        f"recipe without the VICReg term, it is {gains[0]:+.1f} and {gains[1]:+.1f} points ({weight}), with embeddings "
        f"of {cjepa.rank:.1f} effective dimensions instead of {ijepa.rank:.1f}."
    )
