"""What an evaluation offers once its images are known: what decides its values, and how to measure an encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.labelled import BASELINES, LabelledImages
from cjepa.evaluation.pooling import PoolingConfig
from cjepa.evaluation.work import Work
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.ranks import from_first

Values = dict[str, float]


@runtime_checkable
class Task(Protocol):
    """One evaluation of given images. Values are percent unless their name says otherwise."""

    def protocol(self) -> dict[str, Any]:
        """What decides the values besides the evaluation's own keys and the weights."""
        ...

    def divided(self) -> bool:
        """Whether every rank measures, with a share of the work; else the first one does it alone."""
        ...

    def measure(self, encoder: PretrainedEncoder, work: Work) -> Values:
        """The named values of an encoder, which is left as it was; the same on all ranks that measure."""
        ...

    def baselines(self) -> tuple[str, ...]:
        """Names of what else there is to beat; empty where only the untrained encoder can take part."""
        ...

    def measure_baseline(self, name: str, work: Work) -> Values:
        """The values of one of `baselines`."""
        ...


@dataclass(frozen=True)
class FeatureTask:
    """An evaluation that reads the frozen features of labelled images and nothing else."""

    images: LabelledImages
    pooling: PoolingConfig
    evaluate: Callable[[LabelledFeatures], Values]

    def protocol(self) -> dict[str, Any]:
        """Images and their preparation."""
        return self.images.protocol()

    def divided(self) -> bool:
        """Ranks extract features in shares; what follows is quick, and the first one does it."""
        return True

    def measure(self, encoder: PretrainedEncoder, work: Work) -> Values:
        """The values of the encoder's pooled features."""
        return self._evaluated(self.images.embedded(encoder, self.pooling, work), work)

    def baselines(self) -> tuple[str, ...]:
        """Functions of the pixels."""
        return tuple(BASELINES)

    def measure_baseline(self, name: str, work: Work) -> Values:
        """The values of features that nobody had to learn."""
        return self._evaluated(self.images.baseline(name, work), work)

    def _evaluated(self, features: LabelledFeatures | None, work: Work) -> Values:
        def evaluate() -> Values:
            assert features is not None, "the first rank has them"
            with work.promptly():
                return self.evaluate(features)

        return from_first(evaluate)


class EncoderTask:
    """Base of tasks that need an encoder, since nothing else can be put in its place, and that one process does."""

    def divided(self) -> bool:
        """The first rank trains, or follows a video, and tests; the others wait for its values."""
        return False

    def baselines(self) -> tuple[str, ...]:
        """None but the untrained encoder."""
        return ()

    def measure_baseline(self, name: str, _work: Work) -> Values:
        """Never asked for."""
        raise AssertionError(name)
