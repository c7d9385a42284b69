"""Tar archives of pictures as other tools make them, for tests of shards."""

import io
import sys
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from cjepa.data import ParquetSource, ShardSource


def picture(number: int, kind: str = "PNG") -> bytes:
    """A noisy picture that is different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (12 + number % 5, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes], links: Sequence[tuple[str, str]] = ()) -> Path:
    """An archive with these members in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int = 3, each: int = 4, labels: bool = True) -> Path:
    """A WebDataset of shards * each pictures: number i has the label i % 3."""
    for shard in range(shards):
        files: dict[str, bytes] = {}
        for number in range(shard * each, (shard + 1) * each):
            files[f"{number:06d}.png"] = picture(number)
            if labels:
                files[f"{number:06d}.cls"] = b"%d" % (number % 3)
        write_tar(folder / f"part-{shard:04d}.tar", files)
    return folder


def assert_threads_read(source: ShardSource | ParquetSource, contents: Sequence[bytes], times: int) -> None:
    """Whichever of many threads asks for an image gets its own bytes."""
    order = [(place * 7) % len(contents) for place in range(times * len(contents))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for index, found in zip(order, pool.map(source.encoded, order), strict=True):
                assert found == contents[index], index
    finally:
        sys.setswitchinterval(interval)
