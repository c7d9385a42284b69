"""Classify images with a linear classifier on embeddings: python examples/classify.py ENCODER LABELLED_FOLDER

LABELLED_FOLDER has one folder of images for each class, of about four images or more. A quarter of all images is held
out to test on; of folders train and test, only train is looked at.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cjepa
from cjepa.data import DataConfig, EvaluationImages, FolderConfig, labelled_only, open_source


def main(encoder_path: Path, folder: Path) -> float:
    encoder = cjepa.load_encoder(encoder_path)
    source = FolderConfig(path=folder)
    config = DataConfig(source=source, image_size=encoder.image_size, evaluation_crop=encoder.evaluation_crop)
    images = labelled_only(open_source(config, seed=0).train)
    counts = np.unique(images.labels, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2 or len(images) < 4 * len(counts):
        sys.exit(f"{folder} needs a folder of images for each of two classes or more, with about four images in each")
    crops = EvaluationImages(images, config)  # centre crops, uint8
    with torch.inference_mode():
        features = np.concatenate([encoder.embed(crops[index][None]).numpy() for index in range(len(crops))])

    train, test, train_labels, test_labels = train_test_split(
        features, images.labels, test_size=0.25, random_state=0, stratify=images.labels
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(train, train_labels)
    accuracy = float(classifier.score(test, test_labels))
    chance = np.bincount(train_labels).max() / len(train_labels)
    print(
        f"accuracy {accuracy:.1%} on {len(test)} images of {len(images.classes)} classes; most frequent: {chance:.1%}"
    )
    return accuracy


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
