"""Split an image into regions by its patch features: python examples/segment.py ENCODER IMAGE OUT.png [REGIONS]

k-means on dense features, without labels. The image keeps its aspect ratio and is seen at twice the training's
resolution: positions are computed for whatever grid comes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans

import cjepa
from cjepa.data import decode
from cjepa.data.crops import Box, resized

MOST_PIXELS = 64_000_000


def main(encoder_path: Path, image_path: Path, out: Path, regions: int = 4) -> np.ndarray:
    encoder = cjepa.load_encoder(encoder_path)
    image, patch = decode(image_path, MOST_PIXELS), encoder.patch_size
    scale = 2 * min(encoder.image_size) / min(image.size)
    rows, columns = (max(round(side * scale / patch), 1) for side in (image.height, image.width))
    pixels = resized(image, Box(0, 0, image.width, image.height), (rows * patch, columns * patch))
    with torch.inference_mode():
        features = encoder(torch.from_numpy(pixels)[None])[0].numpy()  # [rows * columns, width]

    labels = KMeans(regions, n_init=4, random_state=0).fit_predict(features).reshape(rows, columns)
    colours = np.random.default_rng(0).integers(0, 256, (regions, 3), dtype=np.uint8)
    Image.fromarray(colours[labels]).resize(image.size, Image.Resampling.NEAREST).save(out)
    print(f"{rows} x {columns} patches in {regions} regions: {out}")
    return labels


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:5]))
