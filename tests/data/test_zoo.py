"""A folder as people have them: every oddity at once, trained on without a stop, each reported by name."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cjepa.data import DataConfig, FolderConfig, TrainingStream, iterate, open_source
from cjepa.data.source import ImageSource
from cjepa.types import Masks

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)


def bytes_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def header_only(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


JPEG = bytes_of(PICTURE, "JPEG")
GOOD = {
    "plain.jpg": JPEG,
    "UPPER.JPG": JPEG,
    "png called.jpg": bytes_of(PICTURE, "PNG"),
    "rotated.jpg": bytes_of(PICTURE, "JPEG", exif=rotated()),
    "cmyk.jpg": bytes_of(PICTURE.convert("CMYK"), "JPEG"),
    "grey.png": bytes_of(PICTURE.convert("L"), "PNG"),
    "grey-alpha.png": bytes_of(PICTURE.convert("LA"), "PNG"),
    "alpha.png": bytes_of(PICTURE.convert("RGBA"), "PNG"),
    "palette.png": bytes_of(PICTURE.convert("P"), "PNG", transparency=bytes(range(256))),
    "bits.png": bytes_of(PICTURE.convert("1"), "PNG"),
    "deep.png": bytes_of(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
    "deep.tiff": bytes_of(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "TIFF"),
    "dot.bmp": bytes_of(Image.new("RGB", (1, 1)), "BMP"),
    "line.png": bytes_of(Image.new("L", (5000, 1)), "PNG"),
    "moving.gif": bytes_of(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))]),
    "a/b/c/new\nline.webp": bytes_of(PICTURE, "WEBP"),
    "-leading dash.avif": bytes_of(PICTURE, "AVIF"),
    "grüße 图.ppm": bytes_of(PICTURE, "PPM"),
}
BAD = {
    "empty.jpg": b"",
    "text.png": b"404 not found",
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
    "cut at 300.jpg": JPEG[:300],
    "cut at 60 %.jpg": JPEG[: len(JPEG) * 6 // 10],
    "huge.png": header_only(60_000, 60_000),
    "large.png": header_only(9000, 9000),
    "float.tiff": bytes_of(Image.new("F", (9, 9), 0.5), "TIFF"),
}


@pytest.fixture
def zoo(tmp_path: Path) -> ImageSource:
    for name, data in (GOOD | BAD).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not an image")
    return open_source(DataConfig(source=FolderConfig(path=tmp_path)), 0).train


def no_masks(step: int, first: int, count: int) -> Masks:
    return Masks(torch.zeros(count, 1, dtype=torch.long), torch.zeros(count, 1, 1, dtype=torch.long))


def test_the_zoo_is_listed(zoo: ImageSource) -> None:
    assert set(zoo.names) == set(GOOD) | set(BAD)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_and_names_what_it_could_not_read(zoo: ImageSource, workers: int) -> None:
    config = DataConfig(source=FolderConfig(path=Path("unused")), image_size=24)
    n = len(zoo)
    used, reported = set[int](), set[str]()
    for batch in iterate(TrainingStream(zoo, config, no_masks, n, 0), 0, 3, workers):
        assert batch.images.shape == (n, 3, 24, 24)
        used |= set(batch.samples.tolist())
        reported |= {report.name for report in batch.unreadable}
        assert all(report.reason for report in batch.unreadable)
    assert {zoo.names[index] for index in used} == set(GOOD)
    assert reported == set(BAD)
