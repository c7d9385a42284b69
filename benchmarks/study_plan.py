"""The plan of the study, as data: which runs, in which order, on which device.

A run is a preset with changes, and a seed. Parts ask one question each; within a part everything but the named
change is equal. `planned` lists all runs in the order in which they are worth having, so that a study that is cut
short still answers something: every condition with one seed before any with a second.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "cuda"]

PLAIN, UNTRAINED = "I-JEPA, our masks", "untrained"


@dataclass(frozen=True)
class Recipe:
    """What all runs of some parts have in common. folder: whether the images come from a folder that --data names."""

    name: str
    title: str
    preset: str
    changes: tuple[str, ...]
    folder: bool


@dataclass(frozen=True)
class Condition:
    """A named change of the recipe. group: the row of a phase diagram, or the question of a table, it belongs to."""

    name: str
    changes: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class StudyPart:
    """One question: its conditions with so many seeds, on a device."""

    name: str
    recipe: Recipe
    device: Device
    conditions: tuple[Condition, ...]
    seeds: int
    reference: str = PLAIN
    """The condition that the others are compared with."""


@dataclass(frozen=True)
class Run:
    """One training."""

    part: StudyPart
    condition: Condition
    seed: int

    @property
    def key(self) -> str:
        """Its name as a file."""
        slug = re.sub(r"[^a-z0-9.]+", "-", f"{self.condition.group} {self.condition.name}".lower()).strip("-")
        return f"{self.part.name}--{slug}--{self.seed}"

    @property
    def changes(self) -> list[str]:
        """All changes to the preset but where its images are and the device."""
        return [*self.part.recipe.changes, *self.condition.changes, f"seed={self.seed}"]


_QUIET = ("logging.report=false", "training.checkpoint_every=100", "training.threads=1")
_BASE = ("training.momentum.start=0.99", "model.target.normalization=layer")
"""The base recipe's, whatever the presets have; results from when the demo had them too got them written out."""
_HALF, _FULL = "training.precision=bfloat16", "training.precision=float32"
"""The processors that a part began on decided; within a part all runs have the same."""
_LINEAR = "monitor.evaluations=[{name: linear}]"
_TINY = ("model.encoder.width=96", "model.encoder.depth=3", "model.encoder.heads=3", "model.predictor.width=64")
_TILES = ("data.image_size=24", "data.source.tile_size=24", "monitor.test_images=2160")

TILES = Recipe(
    "tiles",
    "crops of 18 photographs, 24 px",
    "demo",
    (*_QUIET, *_BASE, _HALF, *_TINY, *_TILES, _LINEAR, "training.epochs=8", "training.evaluate_every=2"),
    folder=False,
)
PREDICTING = Recipe(
    "predictors",
    "crops of 18 photographs, 24 px, 4 epochs",
    "demo",
    (*_QUIET, *_BASE, _FULL, *_TINY, *_TILES, _LINEAR, "training.epochs=4", "training.evaluate_every=1"),
    folder=False,
)
COLLAPSE = Recipe(
    "collapse",
    "crops of 18 photographs, 24 px, 4 epochs",
    "demo",
    (*_QUIET, *_BASE, _HALF, *_TINY, *_TILES, "training.epochs=4", "training.evaluate_every=1"),
    folder=False,
)
CIFAR10 = Recipe(
    "cifar10",
    "CIFAR-10, 32 px, 2 epochs",
    "cifar10-small",
    (
        *_QUIET,
        *_BASE,
        _FULL,
        *_TINY,
        _LINEAR,
        "monitor.train_images=5000",
        "monitor.test_images=2000",
        "training.epochs=2",
        "training.evaluate_every=0.5",
    ),
    folder=True,
)
CLOTHING = Recipe(
    "clothing",
    "photographs of clothes, 96 px, 10 epochs",
    "small-96",
    (
        *_QUIET,
        *_BASE,
        _FULL,
        *_TINY,
        _LINEAR,
        "model.predictor.depth=2",
        "training.batch_size=64",
        "training.epochs=10",
        "training.evaluate_every=2",
        "training.optimizer.learning_rate.peak=0.002",
        "training.optimizer.learning_rate.warmup_epochs=1",
    ),
    folder=True,
)


def _gpu(encoder: str, epochs: int) -> Recipe:
    """CIFAR-10 with a ViT-T/4 or ViT-S/4; warm-up is a tenth of the epochs."""
    return Recipe(
        f"cifar10-{encoder}-{epochs}",
        f"CIFAR-10, ViT-{encoder[0].upper()}/4, {epochs} epochs",
        "cifar10",
        (
            "logging.report=false",
            *_BASE,
            _LINEAR,
            f"model.encoder={encoder}",
            "model.encoder.patch_size=4",
            "model.encoder.patch_projection=unit_variance",
            "monitor.train_images=50000",
            "monitor.test_images=10000",
            "training.batch_size=512",
            f"training.epochs={epochs}",
            f"training.evaluate_every={epochs / 10:g}",
            f"training.checkpoint_every={epochs / 10:g}",
            f"training.optimizer.learning_rate.warmup_epochs={epochs / 10:g}",
            "data.workers=8",
        ),
        folder=True,
    )


_P = "objective.projector.width=512"


def objective(name: str, *changes: str) -> tuple[str, ...]:
    """An objective with a projector of 512 features, which all that have one share here."""
    return (f"objective={name}", _P, *changes)


_FAST = "training.momentum.start=0.9"
_OVER_BATCH = "model.target.normalization=batch"
_VIEWS = ("data.views.solarize=0",)
_PLAIN_METHODS = (
    Condition(PLAIN, ("objective=ijepa",)),
    Condition("C-JEPA, beta 0.1", objective("cjepa", "objective.beta=0.1")),
    Condition("C-JEPA on the context, beta 1", ("objective=cjepa-context", "objective.beta=1")),
    Condition("+ variance, covariance, beta 0.1", objective("cjepa-variance-covariance", "objective.beta=0.1")),
    Condition("+ invariance, beta 0.1", objective("cjepa-invariance", "objective.beta=0.1")),
    Condition("C-JEPA, beta 0.001 (the paper's)", objective("cjepa")),
    Condition("C-JEPA with SIGReg, beta 0.1", objective("cjepa-sigreg", "objective.beta=0.1")),
    Condition("VICReg, two views", objective("vicreg")),
    Condition("SimSiam, two views", objective("simsiam", "objective.hidden=128", *_VIEWS)),
)


_FOR_SMALL_DATA = (
    Condition("C-JEPA on the context, for small data", (*_PLAIN_METHODS[2].changes, _FAST, _OVER_BATCH)),
    Condition("I-JEPA, for small data", (*_PLAIN_METHODS[0].changes, _FAST, _OVER_BATCH)),
)
"""What the sensitivity part recommends, and the same without VICReg."""


def reference_masks(min_keep: int) -> tuple[str, ...]:
    """The public sampler's distribution; its own min_keep of 10 never ends on small grids."""
    return ("masking=reference", f"masking.min_keep={min_keep}")


def methods(min_keep: int) -> tuple[Condition, ...]:
    """Those of the convergence study: the paper's rows, at its beta and at one that shows at these batch sizes."""
    masks = Condition("I-JEPA, reference masks", ("objective=ijepa", *reference_masks(min_keep)))
    return (*_PLAIN_METHODS[:3], masks, *_PLAIN_METHODS[3:], *_FOR_SMALL_DATA)


_REGULARISERS = {
    "I-JEPA": ("objective=ijepa",),
    "+ variance, covariance": objective("cjepa-variance-covariance", "objective.beta=0.1"),
    "+ invariance": objective("cjepa-invariance", "objective.beta=0.1"),
    "C-JEPA": objective("cjepa", "objective.beta=0.1"),
    "C-JEPA on the context": ("objective=cjepa-context", "objective.beta=1"),
}


def _momentum(value: float) -> tuple[str, ...]:
    return (f"training.momentum.start={value:g}", f"training.momentum.final={value:g}")


_TEACHERS = {f"EMA {value:g}": _momentum(value) for value in (0.996, 0.99, 0.9, 0.0)}
_TEACHERS["no stop-gradient"] = (*_momentum(0.99), "model.target.gradient=true")
_RATES = {
    f"learning rate {value:g}": (
        *_momentum(0.99),
        f"training.optimizer.learning_rate.peak={value:g}",
        f"training.optimizer.learning_rate.start={min(value, 0.0001):g}",
    )
    for value in (0.0005, 0.008, 0.03, 0.1)
}
_BATCHES = {f"batch {size}": (*_momentum(0.99), f"training.batch_size={size}") for size in (32, 512, 1024)}


def _grid(columns: dict[str, tuple[str, ...]], rows: Iterable[str]) -> tuple[Condition, ...]:
    return tuple(
        Condition(column, (*_REGULARISERS[row], *changes), row) for column, changes in columns.items() for row in rows
    )


PHASES = (
    *_grid(_TEACHERS, _REGULARISERS),
    *_grid(_RATES, ("I-JEPA", "C-JEPA", "C-JEPA on the context")),
    *_grid(_BATCHES, ("I-JEPA", "C-JEPA", "C-JEPA on the context")),
)
"""Regularisers against what might make a run collapse; a constant momentum throughout."""

_CONTEXT = ("objective=cjepa-context", "objective.beta=1")
_ONE_WAY = "model.predictor.attention=one_way"
_LITTLE = "objective.similarity=5"
_RATE = "training.optimizer.learning_rate.peak=0.004"


def _size(width: int, depth: int) -> tuple[str, ...]:
    return (f"model.predictor.width={width}", f"model.predictor.depth={depth}")


BASE = "as it is"
CHOICES = (
    Condition(BASE, _CONTEXT, "base recipe"),
    Condition("none (I-JEPA)", ("objective=ijepa",), "regularised tensor"),
    Condition("predicted blocks, beta 1", objective("cjepa", "objective.beta=1"), "regularised tensor"),
    Condition("context and predicted, beta 1", objective("cjepa-both", "objective.beta=1"), "regularised tensor"),
    Condition("over the batch", (*_CONTEXT, _OVER_BATCH), "targets"),
    Condition("not normalised", (*_CONTEXT, "model.target.normalization=none"), "targets"),
    Condition("0.01", ("objective=cjepa-context", "objective.beta=0.01"), "beta, context"),
    Condition("0.1", ("objective=cjepa-context", "objective.beta=0.1"), "beta, context"),
    Condition("10", ("objective=cjepa-context", "objective.beta=10"), "beta, context"),
    Condition("0.01", objective("cjepa", "objective.beta=0.01"), "beta, predicted"),
    Condition("0", (*_CONTEXT, "objective.similarity=0"), "weight of similarity (25)"),
    Condition("5", (*_CONTEXT, _LITTLE), "weight of similarity (25)"),
    Condition("100", (*_CONTEXT, "objective.similarity=100"), "weight of similarity (25)"),
    Condition("3 x 512, batch norm", (*_CONTEXT, _P, "objective.projector.depth=3"), "projector (none)"),
    Condition(
        "3 x 512, layer norm",
        (*_CONTEXT, _P, "objective.projector.depth=3", "objective.projector.norm=layer"),
        "projector (none)",
    ),
    Condition("1 x 512", (*_CONTEXT, _P, "objective.projector.depth=1"), "projector (none)"),
    Condition("reference sampler", (*_CONTEXT, *reference_masks(2)), "masks"),
    Condition("smaller targets, 0.08 to 0.12", (*_CONTEXT, "masking.target_area=[0.08,0.12]"), "masks"),
    Condition("larger targets, 0.25 to 0.3", (*_CONTEXT, "masking.target_area=[0.25,0.3]"), "masks"),
    Condition("width 32", (*_CONTEXT, "model.predictor.width=32"), "predictor (64 x 2)"),
    Condition("width 128", (*_CONTEXT, "model.predictor.width=128"), "predictor (64 x 2)"),
    Condition("depth 1", (*_CONTEXT, "model.predictor.depth=1"), "predictor (64 x 2)"),
    Condition("depth 4", (*_CONTEXT, "model.predictor.depth=4"), "predictor (64 x 2)"),
    Condition("384 x 6, the paper's", (*_CONTEXT, *_size(384, 6)), "predictor (64 x 2)"),
    Condition("96 x 6, the encoder's width", (*_CONTEXT, *_size(96, 6)), "predictor (64 x 2)"),
    Condition("96 x 6, one-way", (*_CONTEXT, *_size(96, 6), _ONE_WAY), "predictor (64 x 2)"),
    Condition("one-way", (*_CONTEXT, _ONE_WAY), "predictor (64 x 2)"),
    Condition("reference", (*_CONTEXT, "model.encoder.patch_projection=reference"), "patch projection"),
    Condition("from 0.996", (*_CONTEXT, "training.momentum.start=0.996"), "momentum (from 0.99)"),
    Condition("from 0.9", (*_CONTEXT, _FAST), "momentum (from 0.99)"),
    Condition("0.004", (*_CONTEXT, _RATE), "learning rate (0.002)"),
    Condition("0.008", (*_CONTEXT, "training.optimizer.learning_rate.peak=0.008"), "learning rate (0.002)"),
    Condition("from 0.9; over the batch", (*_CONTEXT, _FAST, _OVER_BATCH), "together"),
    Condition("similarity 5; from 0.9", (*_CONTEXT, _LITTLE, _FAST), "together"),
    Condition("similarity 5; over the batch", (*_CONTEXT, _LITTLE, _OVER_BATCH), "together"),
    Condition("similarity 5; from 0.9; over the batch", (*_CONTEXT, _LITTLE, _FAST, _OVER_BATCH), "together"),
    Condition("from 0.9; over the batch; rate 0.004", (*_CONTEXT, _FAST, _OVER_BATCH, _RATE), "together"),
    Condition(
        "beta 0.01; from 0.9; over the batch",
        ("objective=cjepa-context", "objective.beta=0.01", _FAST, _OVER_BATCH),
        "together",
    ),
)
"""One choice changed at a time from the base recipe, then those that did well together."""

_PAPER = objective("cjepa")
"""Of its loss the prediction is the most, where on the context at beta 1 it is next to nothing."""
_BETA = "predictor, beta 0.001 on the predictions"
WIDE = "192 x 6, twice the encoder's width"
"""As the paper's 384 beside the 192 of a ViT-T."""
PREDICTORS = (
    Condition(WIDE, (*_PAPER, *_size(192, 6)), _BETA),
    Condition("96 x 6, the encoder's width", (*_PAPER, *_size(96, 6)), _BETA),
    Condition("96 x 6, one-way", (*_PAPER, *_size(96, 6), _ONE_WAY), _BETA),
)
"""Predictors that cost less than the reference's, where the prediction is what is learned from."""

PARTS = (
    StudyPart("convergence-tiles", TILES, "cpu", methods(2), 3),
    StudyPart("collapse", COLLAPSE, "cpu", PHASES, 1, "EMA 0.99"),
    StudyPart("sensitivity", TILES, "cpu", CHOICES, 3, BASE),
    StudyPart("predictors", PREDICTING, "cpu", PREDICTORS, 3, WIDE),
    StudyPart("convergence-cifar10", CIFAR10, "cpu", methods(4), 3),
    StudyPart("convergence-clothing", CLOTHING, "cpu", methods(4), 3),
    *(StudyPart(f"convergence-cifar10-tiny-{n}", _gpu("tiny", n), "cuda", methods(4), 3) for n in (30, 100, 300)),
    StudyPart("convergence-cifar10-small-100", _gpu("small", 100), "cuda", methods(4), 3),
)
_ORDER = (
    ("convergence-tiles", 0),
    ("collapse", 0),
    ("convergence-tiles", 1),
    ("convergence-tiles", 2),
    ("sensitivity", 0),
    ("convergence-cifar10", 0),
    ("sensitivity", 1),
    ("sensitivity", 2),
)
"""Parts and seeds that come first; what is not named follows, seed by seed."""


def planned(device: Device) -> list[Run]:
    """Every run of the plan for a device, in order."""
    runs = [Run(part, each, seed) for part in PARTS for seed in range(part.seeds) for each in part.conditions]
    places = {key: place for place, key in enumerate(_ORDER)}
    own = [run for run in runs if run.part.device == device]
    return sorted(own, key=lambda run: places.get((run.part.name, run.seed), len(places) + run.seed))
