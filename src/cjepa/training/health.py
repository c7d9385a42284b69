"""Is the run learning or collapsing: one plain verdict and its evidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["too early", "healthy", "partial collapse", "collapse", "not learning"]

EARLY = 0.25
"""Share of the training before which no verdict on learning is given; collapse is called at any time."""
COLLAPSED_RANK = 1.5
"""Collapse: fewer effective dimensions than this."""
COLLAPSED_SPREAD = 0.1
"""Collapse: embeddings spread, for their size, less than this share of what they did untrained."""
LOST_SPREAD = 0.3
"""Partial collapse, without a gain in accuracy: spread below this share of the untrained encoder's."""
LOST_RANK = 0.6
"""Partial collapse, without a gain in accuracy: effective rank below this share of the untrained encoder's."""
SEVERE_RANK = 0.45
"""Partial collapse, whatever the accuracy: effective rank below this share of the untrained encoder's."""
LOST_FROM_PEAK = 0.5
"""Partial collapse, with accuracy falling: effective rank below this share of the highest of this run."""


@dataclass(frozen=True)
class Verdict:
    """The state of a run in one word or two, the numbers it rests on, and what to change.

    advice: empty until `cjepa.runs.advice` adds it, since it depends on what the run has.
    """

    state: State
    evidence: str
    advice: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.state, self.evidence) if part) + (
            f". {self.advice}" if self.advice else ""
        )


@dataclass(frozen=True)
class Record:
    """What a verdict rests on: the values before training and of the current encoder, and the best so far.

    untrained, before the first step (of the random start, or of the weights that `model.start` names), and current:
    `effective_rank`, `spread` (total standard deviation of the embeddings over their root mean square norm),
    `explained_variance` and the accuracy named `quality`, in percent of `images` tests. progress: share of the training
    done, 0 to 1.
    """

    untrained: Mapping[str, float]
    current: Mapping[str, float]
    peak_rank: float
    best_quality: float
    quality: str
    images: int
    progress: float

    @property
    def noise(self) -> float:
        """Two standard errors of a difference of accuracies, in percent."""
        return 2.0 * standard_error(self.untrained[self.quality], self.images)

    @property
    def gained(self) -> bool:
        """The accuracy exceeds the untrained encoder's by more than noise."""
        return self.current[self.quality] - self.untrained[self.quality] > self.noise

    @property
    def declined(self) -> bool:
        """The accuracy is below the best of this run by more than noise."""
        return self.best_quality - self.current[self.quality] > self.noise

    def share(self, name: str) -> float:
        """A value as a share of the untrained encoder's."""
        return self.current[name] / max(self.untrained[name], 1e-12)


def judge(record: Record) -> Verdict:
    """The verdict on an evaluation. A somewhat lower rank alone is no collapse: data may have few dimensions."""
    rank, spread = record.current["effective_rank"], record.share("spread")
    if rank < COLLAPSED_RANK or spread < COLLAPSED_SPREAD:
        return Verdict(
            "collapse",
            f"all images get nearly the same embedding (effective rank {rank:.1f}, spread {100 * spread:.0f} % of "
            "that before training)",
        )
    if record.progress < EARLY:
        return Verdict("too early", _ranks(record))
    severe = record.share("effective_rank") < SEVERE_RANK
    lost = record.share("effective_rank") < LOST_RANK or spread < LOST_SPREAD
    falling = record.declined and rank < LOST_FROM_PEAK * record.peak_rank
    if severe or falling or (lost and not record.gained):
        return Verdict(
            "partial collapse",
            f"{_ranks(record)}, spread {100 * spread:.0f} % of that before training; {_accuracies(record)}",
        )
    if not record.gained:
        return Verdict(
            "not learning",
            f"{_accuracies(record)}, within the noise of {record.noise:.1f}; {_prediction(record)}",
        )
    return Verdict("healthy", f"{_accuracies(record)}; {_ranks(record)}")


def _accuracies(record: Record) -> str:
    name = record.quality
    return f"{name} {record.current[name]:.1f} against {record.untrained[name]:.1f} before training"


def _prediction(record: Record) -> str:
    """Below 0 the share has no meaning, and no lower end where targets hardly vary."""
    share = record.current["explained_variance"]
    if share < 0:
        return f"the predictor is worse than a guess of each position's mean (explained variance {share:.2g})"
    return f"the predictor explains {100 * share:.0f} % of what varies between images"


def _ranks(record: Record) -> str:
    untrained, current = record.untrained["effective_rank"], record.current["effective_rank"]
    return f"effective rank {current:.1f} against {untrained:.1f} before training"


def standard_error(percent: float, images: int) -> float:
    """Standard error of the difference of two accuracies of about this many percent on `images` tests each."""
    share = min(max(percent / 100.0, 1.0 / images), 1.0 - 1.0 / images)
    return 100.0 * float((2.0 * share * (1.0 - share) / images) ** 0.5)
