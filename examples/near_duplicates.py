"""Find images that are nearly the same: python examples/near_duplicates.py ENCODER IMAGES [SIMILARITY]

Prints pairs whose centred embeddings have at least this cosine similarity (0.98), the most similar first.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from cjepa.runs import embed_images


def main(encoder_path: Path, images: Path, least: float = 0.98) -> list[tuple[str, str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        embed_images(encoder_path, images, Path(folder) / "embeddings.npy")
        embeddings = np.load(Path(folder) / "embeddings.npy")
        lines = (Path(folder) / "embeddings.names.jsonl").read_text(encoding="utf-8").splitlines()
    names = np.array([json.loads(line) for line in lines])
    readable = ~np.isnan(embeddings).any(axis=1)
    embeddings, names = embeddings[readable], names[readable]

    # Pooled patches share a large constant part, which would make everything look alike.
    embeddings -= embeddings.mean(axis=0)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    pairs = []
    for first in range(len(embeddings)):  # a row at a time: the whole matrix may not fit into memory
        similar = embeddings[first + 1 :] @ embeddings[first]
        pairs += [
            (str(names[first]), str(names[first + 1 + index]), float(similar[index]))
            for index in np.flatnonzero(similar >= least)
        ]
    pairs.sort(key=lambda pair: -pair[2])
    for one, other, similarity in pairs:
        print(f"{similarity:.3f}  {one}  {other}")
    return pairs


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:4]))
