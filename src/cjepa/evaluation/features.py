"""Frozen features of images, and the labelled sets of them that the evaluations read."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from cjepa.data import EvaluationImages, TwoCrops
from cjepa.data.loader import PATIENCE, Noted, Notes, image_of, load
from cjepa.errors import DivergedError, InputError
from cjepa.evaluation.pooling import LAST_LAYER, PoolingConfig, pooled
from cjepa.evaluation.storage import FeatureStore, row_blocks
from cjepa.models.pretrained import normalise
from cjepa.types import Precision

RESOLUTION = 1e-6
"""Deviations below this share of the features' size are float32 rounding, not content."""

_SHOWN = 5  # at most so many class names in a message


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within, and every submodule's own mode again afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def batches_of(
    images: Dataset[Tensor] | Tensor, batch_size: int, workers: int, pinned: bool = False, patience: float = PATIENCE
) -> Iterable[Tensor]:
    """Images in batches, in order; a dead or hung worker is a WorkerError that names the image."""
    if isinstance(images, Tensor):
        return torch.split(images, batch_size)
    name = image_of(images.source.names) if isinstance(images, EvaluationImages | TwoCrops) else "image {}".format
    notes = Notes(workers)
    return load(
        Noted(images, notes),
        None,
        notes,
        name,
        workers=workers,
        batch_size=batch_size,
        patience=patience,
        pinned=pinned,
    )


def extract_features(
    encoder: nn.Module,
    images: Dataset[Tensor] | UInt8[Tensor, "n *views 3 H W"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    *,
    device: torch.device,
    precision: Precision = "float32",
    batch_size: int = 256,
    workers: int = 0,
    patience: float = PATIENCE,
    progress: Callable[[int], None] | None = None,
    pooling: PoolingConfig = LAST_LAYER,
    scratch: Path | None = None,
) -> Float[Tensor, "n *views D"]:
    """Mean over the patches of the encoder's output for every image, in order, float32 on the CPU.

    encoder: maps normalised images [B, 3, H, W] to [B, N, D] and lies on `device`; it is put in evaluation
    mode and back. images: a map-style dataset or one tensor of uint8 items, each an image [3, H, W] or
    several views of one [V, 3, H, W]; then the features are [n, V, D]. mean, std: per channel, for pixels
    in [0, 1]. precision: of the forward pass (autocast); the mean over patches is float32. batch_size: items
    at a time. workers: processes that load the dataset; patience: seconds after which they count as hung. progress:
    called with the items done, every batch. pooling: of which layers, if not the last; then the encoder must be a
    vision transformer. scratch: a folder; there features that do not fit into memory (storage.FITS) become a temporary
    file, which the tensor maps and which goes with it. Raises InputError without images, DivergedError if an embedding
    is not finite, WorkerError if a worker dies or hangs.
    """
    total = len(images)  # type: ignore[arg-type]  # a map-style dataset has a length
    store, done = FeatureStore(total, scratch), 0
    with (
        torch.no_grad(),  # not inference mode, whose tensors FSDP could not reuse in the next training step
        _evaluation_mode(encoder),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        for batch in batches_of(images, batch_size, workers, device.type == "cuda", patience):
            assert batch.dtype == torch.uint8, f"images must be uint8, not {batch.dtype}"
            pixels = batch.flatten(0, -4).to(device, non_blocking=True)
            vectors = pooled(encoder, normalise(pixels, mean, std), pooling)
            store.append(vectors.cpu().view(*batch.shape[:-3], vectors.shape[-1]))
            done += len(batch)
            if progress is not None:
                progress(done)
    if done == 0:
        raise InputError("there is no image to extract features from; give at least one")
    joined = store.joined()
    if not _finite(joined):
        raise DivergedError("the encoder's embeddings are not finite; evaluate other weights, or --checkpoint best")
    return joined


def _finite(features: Float[Tensor, "n *views D"]) -> bool:
    return all(bool(block.isfinite().all()) for block in row_blocks(features))


def constant_dimensions(features: Float[Tensor, "n D"]) -> Bool[Tensor, "D"]:
    """Dimensions that do not vary beyond rounding: scaling them up would turn noise into features.

    A collapsed encoder's embeddings still differ in their last bits, and those bits depend on the image.
    """
    size = torch.linalg.vector_norm(features) / features.numel() ** 0.5
    return features.std(0, correction=0) <= RESOLUTION * size


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of training and test images with their labels, indices into `classes`.

    Raises InputError if a set is empty, a label out of range, a value not finite, fewer than two classes have
    training images, or a class of the test images has none. Classes without test images are allowed.
    """

    train: Float[Tensor, "n_train D"]
    train_labels: Int[Tensor, "n_train"]
    test: Float[Tensor, "n_test D"]
    test_labels: Int[Tensor, "n_test"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.train) == len(self.train_labels), "train and train_labels differ in length"
        assert len(self.test) == len(self.test_labels), "test and test_labels differ in length"
        assert self.train.shape[1] == self.test.shape[1], "train and test features differ in width"
        _check_labels("training", self.train_labels, self.classes)
        _check_labels("test", self.test_labels, self.classes)
        if not (_finite(self.train) and _finite(self.test)):
            raise InputError("some features are not finite; extract them from a healthy checkpoint")
        check_classes(set(self.train_labels.tolist()), set(self.test_labels.tolist()), self.classes)

    @classmethod
    def select(
        cls,
        train: Float[Tensor, "n_train D"],
        train_labels: Int[np.ndarray, "n_train"],
        test: Float[Tensor, "n_test D"],
        test_labels: Int[np.ndarray, "n_test"],
        classes: tuple[str, ...],
    ) -> "LabelledFeatures":
        """From the labels of image sources: images without a label (-1) are left out."""
        train_index = torch.as_tensor(train_labels, dtype=torch.int64)
        test_index = torch.as_tensor(test_labels, dtype=torch.int64)
        return cls(*_with_label(train, train_index), *_with_label(test, test_index), classes)


def _with_label(
    features: Float[Tensor, "n D"], labels: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "m D"], Int[Tensor, "m"]]:
    """The features that have a label; themselves where all have, since a selection would copy them into memory."""
    has = labels != -1
    return (features, labels) if bool(has.all()) else (features[has], labels[has])


def check_classes(known: set[int], tested: set[int], classes: tuple[str, ...]) -> None:
    """InputError if training images are of fewer than two classes, or test images of a class that has none of them."""
    if len(known) < 2:
        raise InputError(
            f"all training images are of the class {_names(known, classes)}, so there is nothing to "
            "tell apart; give images of at least two classes (one folder each)"
        )
    unseen = tested - known
    if unseen and unseen == tested:
        raise InputError(strangers(known, tested, classes))
    if unseen:
        raise InputError(
            f"no training image for {len(unseen)} of the classes of the test images "
            f"({_names(unseen, classes)}); add training images of them or remove their test images"
        )


def strangers(known: set[int], tested: set[int], classes: tuple[str, ...]) -> str:
    """What to say where no class of the test images is one of the training images."""
    return (
        f"no class of the test images ({_names(tested, classes)}) is one of the training images "
        f"({_names(known, classes)}); call the classes the same in both, in Parquet files by the names that their "
        "metadata state for the numbers"
    )


def _check_labels(kind: str, labels: Int[Tensor, "n"], classes: tuple[str, ...]) -> None:
    if len(labels) == 0:
        raise InputError(
            f"none of the {kind} images has a label; put the images of each class into a folder of its own"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise InputError(
            f"the {kind} labels run from {low} to {high}, but there are {len(classes)} classes; "
            f"number the classes from 0 to {len(classes) - 1}"
        )


def _names(indices: set[int], classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[index] for index in sorted(indices)[:_SHOWN])
    return f"{shown}, ..." if len(indices) > _SHOWN else shown
