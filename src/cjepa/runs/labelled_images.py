"""The labelled images of a run."""

import logging

import numpy as np

from cjepa.data import NO_LABEL, DataConfig, ImageSource, labelled_only, open_source
from cjepa.data.source import Subset
from cjepa.errors import InputError
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.monitor import labelled_splits

_log = logging.getLogger(__name__)
_SHOWN = 5  # at most so many class names in a message


def open_labelled(data: DataConfig, seed: int) -> LabelledImages:
    """The labelled images of a config's data; InputError where there are none to train or to test on."""
    splits = open_source(data, seed)
    for note in splits.notes:
        _log.info("%s", note)
    labelled = labelled_splits(splits)
    count = np.count_nonzero(splits.train.labels != NO_LABEL)
    if labelled is None and len(splits.train.classes) > 1 and count:
        raise InputError(
            f"the {count} labelled images are too few to hold about a fifth of them out to test on; give more images "
            "of each class, or divide them into folders: train/CLASS/image.jpg and test/CLASS/image.jpg"
        )
    if labelled is None or labelled.test is None or not np.any(labelled.train.labels != NO_LABEL):
        raise InputError(
            "the images have no labels to evaluate with; put those of each class into a folder of its own (at least "
            "two classes, as in FOLDER/CLASS/image.jpg), or name a folder of such images with --images FOLDER"
        )
    train, test = labelled_only(labelled.train), labelled_only(labelled.test)
    if labelled.test is not splits.test:
        _log.info("no test images of their own: about a fifth of the labelled images is held out to test on")
        test = _of_trained_classes(train, test)
    return LabelledImages(data, train, test)


def _of_trained_classes(train: ImageSource, test: ImageSource) -> ImageSource:
    """Held-out images whose class has training images too: where it has not, the user made no mistake."""
    usable = np.isin(test.labels, train.labels)
    if usable.all():
        return test
    if not usable.any():
        raise InputError("no class has an image to train on besides the one held out to test on; add images")
    few = np.unique(test.labels[~usable])
    _log.warning(
        "%d of %d classes are not tested (%s): all of their images, %d in all, are among the held-out ones",
        len(few),
        len(test.classes),
        ", ".join([test.classes[label] for label in few[:_SHOWN]] + ["..."] * (len(few) > _SHOWN)),
        np.count_nonzero(~usable),
    )
    return Subset(test, np.flatnonzero(usable))
