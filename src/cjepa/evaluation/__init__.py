"""How good an encoder is: evaluations of frozen features, and of encoders trained further."""

from collections.abc import Callable
from typing import Annotated, Any, assert_never

from pydantic import Field

from cjepa.data import DataConfig
from cjepa.evaluation.attentive import AttentiveConfig, open_attentive
from cjepa.evaluation.clevr import CountingConfig, DistanceConfig, open_counting, open_distance
from cjepa.evaluation.detection import DetectionConfig, open_detection
from cjepa.evaluation.features import LabelledFeatures
from cjepa.evaluation.finetune import FinetuneConfig, open_finetune
from cjepa.evaluation.knn import KnnConfig, knn_accuracy
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.linear import LinearConfig, check_strengths, linear_accuracy
from cjepa.evaluation.linear_sgd import LinearSgdConfig, open_linear_sgd
from cjepa.evaluation.lowshot import LowshotConfig, check_counts, lowshot_accuracy
from cjepa.evaluation.patches import PatchRetrievalConfig, open_patch_retrieval
from cjepa.evaluation.retrieval import RetrievalConfig, check_neighbours, retrieval_recall
from cjepa.evaluation.segmentation import SegmentationConfig, open_segmentation
from cjepa.evaluation.task import FeatureTask, Task
from cjepa.evaluation.video import VideoConfig, open_video
from cjepa.types import Precision

FeatureEvaluation = KnnConfig | LinearConfig | LowshotConfig | RetrievalConfig
"""Functions of frozen features with labels: cheap enough to be measured while a run trains."""

Evaluation = (
    FeatureEvaluation
    | LinearSgdConfig
    | AttentiveConfig
    | FinetuneConfig
    | SegmentationConfig
    | PatchRetrievalConfig
    | CountingConfig
    | DistanceConfig
    | DetectionConfig
    | VideoConfig
)
EvaluationConfig = Annotated[Evaluation, Field(discriminator="name")]

VERSIONS = {"detection": 2}
"""Evaluations that once gave other values for the same keys, images and weights, by name; of all others 1.

Raised by hand with such a change, so that lines of before it are neither answers nor compared with those of after it.
"""


def protocol_of(config: Evaluation, task: Task, precision: Precision) -> dict[str, Any]:
    """All that decides the values of an evaluation besides the weights, as it is kept with them."""
    # Where the images lie is a matter of the machine; what they are is in the task's protocol.
    keys = config.model_dump(mode="json", exclude={"data"})
    version = {"version": VERSIONS[config.name]} if config.name in VERSIONS else {}
    return keys | task.protocol() | {"precision": precision} | version


def evaluate(config: FeatureEvaluation, features: LabelledFeatures) -> dict[str, float]:
    """The named values of one evaluation of features; accuracies are percent of the test images."""
    match config:
        case KnnConfig():
            return knn_accuracy(config, features)
        case LinearConfig():
            return linear_accuracy(config, features)
        case LowshotConfig():
            return lowshot_accuracy(config, features)
        case RetrievalConfig():
            return retrieval_recall(config, features)
        case _:
            assert_never(config)


def check_labels(config: FeatureEvaluation, images: LabelledImages) -> None:
    """InputError for keys that the labelled training images cannot satisfy: their labels tell, before one is read."""
    labels = images.train.labels
    match config:
        case KnnConfig():
            pass  # a k above the number of images is cut to it
        case LinearConfig():
            check_strengths(config, labels)
        case LowshotConfig():
            check_counts(config, labels, images.train.classes)
        case RetrievalConfig():
            check_neighbours(config.k, len(labels))
        case _:
            assert_never(config)


def open_task(config: Evaluation, data: DataConfig, images: Callable[[], LabelledImages]) -> Task:
    """An evaluation with its images; InputError when they are missing or cannot be used.

    data: how the encoder's images are prepared. images: opens the labelled
    images of the run, for evaluations that name no data of their own.
    """
    match config:
        case KnnConfig() | LinearConfig() | LowshotConfig() | RetrievalConfig():
            labelled = images()
            check_labels(config, labelled)
            return FeatureTask(labelled, config.pooling, lambda features: evaluate(config, features))
        case LinearSgdConfig():
            return open_linear_sgd(config, images())
        case AttentiveConfig():
            return open_attentive(config, images())
        case FinetuneConfig():
            return open_finetune(config, images())
        case SegmentationConfig():
            return open_segmentation(config, data)
        case PatchRetrievalConfig():
            return open_patch_retrieval(config, data)
        case CountingConfig():
            return open_counting(config, data)
        case DistanceConfig():
            return open_distance(config, data)
        case DetectionConfig():
            return open_detection(config, data)
        case VideoConfig():
            return open_video(config, data)
        case _:
            assert_never(config)
