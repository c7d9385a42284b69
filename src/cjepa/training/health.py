"""Is the run learning or collapsing: one plain verdict, its evidence and what to change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["too early", "healthy", "partial collapse", "collapse", "not learning"]

EARLY = 0.1
"""Share of the training before which no verdict on learning is given; collapse is called at any time."""
COLLAPSED_RANK = 1.5
COLLAPSED_SPREAD = 0.01
"""Collapse: fewer effective dimensions than this, or embeddings that vary by less than this share of their size."""
LOST_RANK = 0.6
"""Partial collapse: an effective rank below this share of the untrained encoder's."""
LOST_FROM_PEAK = 0.5
"""Partial collapse: an effective rank below this share of the best one of this run."""
EXPLAINED = 0.02
"""Not learning: the predictor explains less than this share of what varies between images."""


@dataclass(frozen=True)
class Verdict:
    """The state of a run in one word or two, the numbers it rests on, and what to change."""

    state: State
    evidence: str
    advice: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.state, self.evidence) if part) + (
            f". {self.advice}" if self.advice else ""
        )


def judge(
    untrained: Mapping[str, float],
    peak_rank: float,
    current: Mapping[str, float],
    quality: str,
    images: int,
    progress: float,
) -> Verdict:
    """The verdict on the values of an evaluation, against those of the untrained encoder.

    untrained, current: `effective_rank`, `spread` (smallest half of the deviations over the embeddings' size),
    `explained_variance` and the accuracy named `quality`, in percent of `images` tests. peak_rank: highest
    effective rank so far. progress: share of the training done, 0 to 1.
    """
    rank, first_rank = current["effective_rank"], untrained["effective_rank"]
    if rank < COLLAPSED_RANK or current["spread"] < COLLAPSED_SPREAD:
        return Verdict(
            "collapse",
            f"all images get nearly the same embedding (effective rank {rank:.1f}, spread {current['spread']:.4f})",
            "Stop. Check that targets have no gradient and that training.momentum.start is 0.9 or more; lower "
            "training.optimizer.learning_rate.peak; use objective=cjepa-context with objective.beta=0.1.",
        )
    if progress < EARLY:
        return Verdict("too early", f"effective rank {rank:.1f}, untrained {first_rank:.1f}", "")
    gained = current[quality] - untrained[quality]
    accuracy = f"{quality} {current[quality]:.1f} against {untrained[quality]:.1f} untrained"
    ranks = f"effective rank {rank:.1f} against {first_rank:.1f} untrained and {peak_rank:.1f} at best"
    if rank < max(LOST_RANK * first_rank, LOST_FROM_PEAK * peak_rank):
        return Verdict(
            "partial collapse",
            f"{ranks}; {accuracy}",
            "Use objective=cjepa-context, or raise objective.beta (0.1 at batches of 128 to 256), or raise the batch "
            "size; the best checkpoint so far is kept.",
        )
    noise = 2.0 * standard_error(untrained[quality], images)
    if gained <= noise or current["explained_variance"] < EXPLAINED:
        return Verdict(
            "not learning",
            f"{accuracy} (noise {noise:.1f}); the predictor explains "
            f"{100 * current['explained_variance']:.0f} % of what varies between images",
            "With small patches set model.encoder.patch_projection=unit_variance; shorten the momentum's horizon "
            "(training.momentum.start=0.99); train longer; see docs/health.md.",
        )
    return Verdict("healthy", f"{accuracy}; {ranks}", "")


def standard_error(percent: float, images: int) -> float:
    """Standard error of the difference of two accuracies of about this many percent on `images` tests each."""
    share = min(max(percent / 100.0, 1.0 / images), 1.0 - 1.0 / images)
    return 100.0 * float((2.0 * share * (1.0 - share) / images) ** 0.5)
