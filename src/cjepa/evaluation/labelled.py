"""Labelled images, and the features of them that encoders and baselines give."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cjepa.data import DataConfig, EvaluationImages, ImageSource
from cjepa.evaluation.baselines import colour_statistics, raw_pixels
from cjepa.evaluation.features import LabelledFeatures, batches_of, check_classes, extract_features
from cjepa.evaluation.pooling import PoolingConfig
from cjepa.evaluation.shares import in_shares, share
from cjepa.evaluation.storage import FeatureStore
from cjepa.evaluation.work import Work
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.ranks import on_first, rank

BASELINES = {"raw pixels": raw_pixels, "colour statistics": colour_statistics}
"""Features that nobody had to learn, by the name under which their results are kept."""


_CROP = "evaluation_crop"


def counts_images(protocol: Mapping[str, Any]) -> bool:
    """Whether accuracies by a protocol are shares of its test images: of LabelledImages, where each is one trial.

    Of pixels, objects or frames the number of images tells no uncertainty.
    """
    return _CROP in protocol


@dataclass(frozen=True)
class LabelledImages:
    """Training and test images, all of them with a label, prepared as a run's data config says.

    Features of the last encoder asked about are remembered, so that several evaluations share them. Raises InputError
    where classes cannot be told apart, as LabelledFeatures does, but before anything is trained or extracted.
    """

    data: DataConfig
    train: ImageSource
    test: ImageSource
    _remembered: dict[tuple[object, PoolingConfig | None], LabelledFeatures | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known, tested = (set(np.unique(source.labels).tolist()) for source in (self.train, self.test))
        check_classes(known, tested, self.train.classes)

    def protocol(self) -> dict[str, Any]:
        """What decides the features besides the weights: accuracies compare at equal protocols only."""
        digest = hashlib.sha256((self.train.fingerprint + self.test.fingerprint).encode())
        for source in (self.train, self.test):  # the same images may be labelled by another column
            digest.update(repr(tuple(source.classes)).encode() + source.labels.astype("<i8").tobytes())
        return {
            "train_images": len(self.train),
            "test_images": len(self.test),
            "classes": len(self.train.classes),
            "image_size": list(self.data.size),
            _CROP: self.data.evaluation_crop,
            "images": digest.hexdigest()[:16],
        }

    def embedded(self, encoder: PretrainedEncoder, pooling: PoolingConfig, work: Work) -> LabelledFeatures | None:
        """Pooled embeddings, on the first rank: all ranks extract a share of them. A line says how far they are."""
        return self._remember((encoder, pooling), lambda: self._embedded(encoder, pooling, work))

    def baseline(self, name: str, work: Work) -> LabelledFeatures | None:
        """Features that are a function of the pixels alone, on the first rank, which computes them."""
        return self._remember((name, None), lambda: on_first(lambda: self._computed(BASELINES[name], work)))

    def _remember(
        self, key: tuple[object, PoolingConfig | None], compute: Callable[[], LabelledFeatures | None]
    ) -> LabelledFeatures | None:
        if key not in self._remembered:
            for other in [other for other in self._remembered if other[0] is not key[0]]:
                del self._remembered[other]
            self._remembered[key] = compute()
        return self._remembered[key]

    def _embedded(self, encoder: PretrainedEncoder, pooling: PoolingConfig, work: Work) -> LabelledFeatures | None:
        encoder = encoder.to(work.device)
        sizes = [len(share(len(source), work.batch_size, rank())) for source in (self.train, self.test)]
        with work.progress("features", sum(sizes)) as line:

            def features(source: ImageSource, before: int) -> Tensor:
                with work.promptly():
                    return extract_features(
                        encoder,
                        EvaluationImages(source, self.data),
                        self.data.mean,
                        self.data.std,
                        device=work.device,
                        precision=work.precision,
                        batch_size=work.batch_size,
                        workers=work.workers,
                        patience=work.patience,
                        progress=lambda done: line.update(before + done, {}),
                        pooling=pooling,
                        scratch=work.scratch,
                    )

            parts = [
                in_shares(partial(features, before=before), source, work.batch_size, work.scratch)
                for source, before in ((self.train, 0), (self.test, sizes[0]))
            ]
        return on_first(lambda: self._labelled(*parts))

    def _computed(self, function: Callable[[Tensor], Tensor], work: Work) -> LabelledFeatures:
        def features(source: ImageSource, before: int) -> Tensor:
            images, store = EvaluationImages(source, self.data), FeatureStore(len(source), work.scratch)
            for batch in batches_of(images, work.batch_size, work.workers, patience=work.patience):
                store.append(function(batch))
                before += len(batch)
                line.update(before, {}, len(batch))
            return store.joined()

        with work.promptly(), work.progress("pixels", len(self.train) + len(self.test)) as line:
            return self._labelled(features(self.train, 0), features(self.test, len(self.train)))

    def _labelled(self, train: Tensor | None, test: Tensor | None) -> LabelledFeatures:
        assert train is not None
        assert test is not None
        return LabelledFeatures.select(train, self.train.labels, test, self.test.labels, self.train.classes)


def accuracies(
    classify: Callable[[Float[Tensor, "B 3 H W"]], Sequence[Float[Tensor, "B classes"]]],
    source: ImageSource,
    data: DataConfig,
    what: str,
    work: Work,
) -> list[float]:
    """Percent of a source's centre crops that each of several classifiers has right.

    classify: normalised images on the device to the logits of each classifier. what: the line calls an image.
    """
    right: list[Tensor] = []
    images = EvaluationImages(source, data)
    with torch.inference_mode(), work.progress(what, len(source)) as line:
        done = 0
        for batch in batches_of(images, work.batch_size, work.workers, patience=work.patience):
            labels = torch.from_numpy(source.labels[done : done + len(batch)]).to(work.device)
            logits = classify(normalise(batch.to(work.device), data.mean, data.std))
            right.append(torch.stack([(each.argmax(1) == labels).sum() for each in logits]))
            done += len(batch)
            line.update(done, {}, len(batch))
    return [100 * count / done for count in torch.stack(right).sum(0).tolist()]
