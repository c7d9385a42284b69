"""Which photos of a folder are most like this one? python examples/semantic_search.py ENCODER PHOTOS QUERY_IMAGE

The first call embeds the folder into PHOTOS.safetensors beside it; later calls only read that file, so remove it when
the photos or the encoder are others.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import cjepa
from cjepa.data import decode
from cjepa.data.crops import centre_crop
from cjepa.runs import embed_images

SHOWN, MOST_PIXELS = 5, 64_000_000


def main(encoder_path: Path, photos: Path, query: Path) -> list[str]:
    photos = photos.resolve()  # "." has no name
    index = photos.with_name(f"{photos.name}.safetensors")  # a folder's name may have a dot
    if not index.exists():
        embed_images(encoder_path, photos, index)
    embeddings = load_file(index)["pooled"]
    names = [json.loads(line) for line in index.with_suffix(".names.jsonl").read_text(encoding="utf-8").splitlines()]

    encoder = cjepa.load_encoder(encoder_path)
    image = centre_crop(decode(query, MOST_PIXELS), encoder.image_size, encoder.evaluation_crop)
    with torch.inference_mode():
        wanted = encoder.embed(torch.from_numpy(image)[None])[0]

    mean = embeddings.nanmean(dim=0)  # images that could not be read have NaN
    similarity = torch.cosine_similarity(embeddings - mean, (wanted - mean)[None]).nan_to_num(-1.0)
    best = similarity.topk(min(SHOWN, len(names))).indices.tolist()
    for place in best:
        print(f"{similarity[place]:.3f}  {names[place]}")
    return [names[place] for place in best]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
