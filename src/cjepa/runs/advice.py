"""What to change in a run that goes wrong: what was measured to help (docs/results.md), and the run does not have."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import assert_never

from cjepa.config import RunConfig
from cjepa.objectives import BothConfig, ContextConfig, IJepaConfig, TwoViewsConfig
from cjepa.training.health import State, Verdict

SMALL_PATCH = 8
"""Pixels of a patch up to which the reference's projection lets positions drown what is in the patch."""
WEAK_BETA = 0.01
"""Weight of VICReg on the context below which nothing was measured; from here to 10 it made no difference."""
GAINED_NOTHING = 96
"""Pixels of a side at which the fast average with targets over the batch gained no accuracy, and lost some
linearly; it helped at 24 and 32."""
FEW_DIMENSIONS = 5.0
"""Weight of the context's similarity to the targets above which fewer dimensions were kept."""


def advised(verdict: Verdict, config: RunConfig) -> Verdict:
    """The verdict on a run of this configuration, with what to change."""
    return replace(verdict, advice=_advice(verdict.state, config))


def _advice(state: State, config: RunConfig) -> str:
    match state:
        case "healthy" | "too early":
            return ""
        case "collapse":
            changes = [*_stop_gradient(config), *_context(config), _slower_learning(config)]
            return f"Stop: a collapsed encoder does not recover. Check that the images differ. {_in_a_new_run(changes)}"
        case "partial collapse":
            changes = [*_stop_gradient(config), *_context(config), *_more_dimensions(config)]
            what = _in_a_new_run(changes) or "More images, or ones that differ more, may keep more dimensions."
            return f"{what} The best checkpoint so far is kept."
        case "not learning":
            changes = [*_projection(config), *_context(config), *_shorter_average(config)]
            return f"{_in_a_new_run(changes)} Train longer or on more images; cjepa evaluate compares runs.".lstrip()
        case _:
            assert_never(state)


def _in_a_new_run(changes: Iterable[str]) -> str:
    found = "; ".join(changes)
    return f"In a new run try {found}." if found else ""


def _stop_gradient(config: RunConfig) -> Iterator[str]:
    if config.model.target.gradient and not isinstance(config.objective, TwoViewsConfig):
        yield "model.target.gradient=false (without stop-gradient all embeddings shrink to one point)"


def _context(config: RunConfig) -> Iterator[str]:
    objective = config.objective
    if not _on_context(config):
        yield "objective=cjepa-context objective.beta=0.1 (VICReg then acts on the encoder itself)"
    elif isinstance(objective, ContextConfig | BothConfig) and objective.beta < WEAK_BETA:
        yield f"objective.beta=0.1 (VICReg is hardly felt at {objective.beta:g})"


def _on_context(config: RunConfig) -> bool:
    return isinstance(config.objective, ContextConfig | BothConfig)


def _slower_learning(config: RunConfig) -> str:
    return f"a training.optimizer.learning_rate.peak below {config.training.optimizer.learning_rate.peak:g}"


def _more_dimensions(config: RunConfig) -> Iterator[str]:
    """On the context no learning rate and no average cost dimensions; elsewhere high and fast ones did."""
    objective = config.objective
    if not _on_context(config):
        yield _slower_learning(config)
    if isinstance(objective, IJepaConfig):
        yield from _slower_average(config)
    if isinstance(objective, ContextConfig):
        yield from _faster_recipe(config)
        if objective.similarity > FEW_DIMENSIONS:
            yield f"objective.similarity={FEW_DIMENSIONS:g} (more dimensions, but it cost 3 to 5 points linearly)"


def _slower_average(config: RunConfig) -> Iterator[str]:
    momentum, changes = config.training.momentum, []
    if momentum.start < 0.99:
        changes.append("training.momentum.start=0.99")
        if momentum.final < 0.99:
            changes.append("training.momentum.final=1")
    if config.model.target.normalization == "batch":
        changes.append("model.target.normalization=layer")
    if changes:
        yield f"{' '.join(changes)} (without VICReg a fast average with targets over the batch costs dimensions)"


def _faster_recipe(config: RunConfig) -> Iterator[str]:
    if max(config.data.size) >= GAINED_NOTHING:
        return
    changes = []
    if config.training.momentum.start > 0.9:
        changes.append("training.momentum.start=0.9")
    if config.model.target.normalization != "batch":
        changes.append("model.target.normalization=batch")
    if changes:
        yield f"{' '.join(changes)} (together more dimensions and more neighbours on small crops)"


def _projection(config: RunConfig) -> Iterator[str]:
    encoder = config.model.encoder
    untrained = config.model.start is None  # the weights of others bring a projection of their own
    if encoder.patch_projection == "reference" and encoder.patch_size <= SMALL_PATCH and untrained:
        yield "model.encoder.patch_projection=unit_variance (positions drown what is in a small patch)"


def _shorter_average(config: RunConfig) -> Iterator[str]:
    start = config.training.momentum.start
    if start > 0.99:
        yield f"training.momentum.start=0.99 (in a short run an average over {1 / (1 - start):.0f} steps lags behind)"
    elif isinstance(config.objective, ContextConfig):
        yield from _faster_recipe(config)
