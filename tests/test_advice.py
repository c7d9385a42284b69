"""What a verdict advises: never what the run has, always what its configuration takes."""

import re
from typing import get_args

import pytest

from cjepa.config import RunConfig, differences
from cjepa.config.presets import preset_names, resolve
from cjepa.objectives import AnyObjectiveConfig
from cjepa.runs.advice import advised
from cjepa.training.health import State, Verdict

OBJECTIVES = [part.model_fields["name"].default for part in get_args(AnyObjectiveConfig)]
BAD: tuple[State, ...] = ("collapse", "partial collapse", "not learning")
BEST = [
    "objective=cjepa-context",
    "objective.beta=0.1",
    "objective.similarity=5",
    "model.target.normalization=batch",
    "training.momentum.start=0.9",
    "model.encoder.patch_projection=unit_variance",
]
"""Everything that advice names for a run on small crops."""


def advice(state: State, config: RunConfig) -> str:
    return advised(Verdict(state, "evidence"), config).advice


def changes_in(text: str) -> list[str]:
    return re.findall(r"[a-z_]+(?:\.[a-z_]+)*=[\w-]+(?:\.\d+)?", text)


@pytest.mark.parametrize("state", BAD)
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        *((preset, []) for preset in preset_names()),
        *(("small-96", [f"objective={name}"]) for name in OBJECTIVES),
        ("small-96", ["objective=ijepa", "training.momentum.start=0.9", "model.target.normalization=batch"]),
        ("small-96", ["objective=ijepa", "training.momentum.start=0", "training.momentum.final=0"]),
        ("small-96", ["objective=ijepa", "model.target.gradient=true"]),
        ("small-96", ["objective=vicreg", "model.target.gradient=true"]),
        ("small-96", BEST),
        ("cifar10", BEST),
    ],
)
def test_advice_names_only_what_would_change_the_run(preset: str, changes: list[str], state: State) -> None:
    taken = list(changes)
    config = resolve(preset, taken)
    for _ in range(4):
        found = changes_in(advice(state, config))
        for change in found:
            taken.append(change)
            after = resolve(preset, taken)
            assert differences(config, after), f"the run has {change} already"
            config = after
        if not found:
            break
    else:
        pytest.fail(f"the advice comes to no end: {taken}")
    assert advice(state, config), "there is always something to do"


def test_it_reads_as_sentences() -> None:
    config = resolve("small-96", ["objective=ijepa", "training.optimizer.learning_rate.peak=0.002"])
    assert advice("collapse", config) == (
        "Stop: a collapsed encoder does not recover. Check that the images differ. In a new run try "
        "objective=cjepa-context objective.beta=0.1 (VICReg then acts on the encoder itself); a "
        "training.optimizer.learning_rate.peak below 0.002."
    )


@pytest.mark.parametrize("state", BAD)
@pytest.mark.parametrize("objective", ["ijepa", "cjepa", "cjepa-invariance", "simsiam"])
def test_vicreg_on_the_context_is_advised_where_it_is_missing(objective: str, state: State) -> None:
    config = resolve("small-96", [f"objective={objective}"])
    assert "objective=cjepa-context objective.beta=0.1" in advice(state, config)


def test_nothing_is_advised_where_nothing_is_wrong() -> None:
    config = resolve("imagenet-vit-b")
    assert advised(Verdict("healthy", "evidence"), config) == Verdict("healthy", "evidence")
    assert not advice("too early", config)


def test_only_small_patches_need_another_projection() -> None:
    reference = "model.encoder.patch_projection=reference"
    wanted = "model.encoder.patch_projection=unit_variance"
    assert wanted in advice("not learning", resolve("small-96", [reference]))
    assert wanted not in advice("not learning", resolve("small-224", [reference]))
    assert wanted not in advice("not learning", resolve("small-96", [reference, "model.start=weights"]))


def test_the_faster_average_is_advised_for_small_images_alone() -> None:
    """On photographs of 96 pixels it gained no accuracy (docs/results.md)."""
    faster = "training.momentum.start=0.9 model.target.normalization=batch"
    context = ["objective=cjepa-context", "objective.beta=0.1", "training.momentum.start=0.99"]
    for state in BAD[1:]:
        assert faster in advice(state, resolve("cifar10", context))
        assert faster not in advice(state, resolve("small-96", context))


def test_the_average_is_no_remedy_for_a_complete_collapse() -> None:
    """What prevents it is the stop-gradient (docs/results.md); a fast average alone costs I-JEPA dimensions."""
    fast = ["objective=ijepa", "training.momentum.start=0.9"]
    assert "momentum" not in advice("collapse", resolve("small-96", fast))
    assert "training.momentum.start=0.99" in advice("partial collapse", resolve("small-96", fast))
    assert "model.target.gradient=false" in advice("collapse", resolve("small-96", ["model.target.gradient=true"]))
