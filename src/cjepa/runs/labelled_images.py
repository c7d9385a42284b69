"""The labelled images of a run."""

import logging

import numpy as np

from cjepa.config import RunConfig
from cjepa.data import NO_LABEL, labelled_only, open_source
from cjepa.errors import InputError
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.monitor import labelled_splits

_log = logging.getLogger(__name__)


def open_labelled(config: RunConfig) -> LabelledImages:
    """The labelled images of a config's data; InputError where there are none to train or to test on."""
    splits = open_source(config.data, config.seed)
    labelled = labelled_splits(splits)
    if labelled is None or labelled.test is None or not np.any(labelled.train.labels != NO_LABEL):
        raise InputError(
            "the images have no labels to evaluate with; put those of each class into a folder of its own (at least "
            "two classes, as in FOLDER/CLASS/image.jpg), or name a folder of such images with --images FOLDER"
        )
    if labelled.test is not splits.test:
        _log.info("no test images of their own: about a fifth of the labelled images is held out to test on")
    return LabelledImages(config.data, labelled_only(labelled.train), labelled_only(labelled.test))
