"""Every kind of image against numpy references; everything else refused by the one declared error."""

import contextlib
import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from cjepa.data.decoding import BACKGROUND, UnreadableImageError, decode

LIMIT = 64_000_000
RNG = np.random.default_rng(0)
PHOTO = np.add.outer(np.arange(24) * 5, np.arange(36) * 3)[..., None] + np.array([0, 10, 20])
PHOTO = PHOTO.astype(np.uint8)
ALPHA = np.linspace(0, 255, 24 * 36).reshape(24, 36).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + header + extra + body + chunk(b"IEND", b"")


def png_rows(samples: np.ndarray) -> bytes:
    """Unfiltered scan lines of 16-bit samples [H, W, C]."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)


def pixels(data: bytes | Path) -> np.ndarray:
    image = decode(data, LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image)


def over_background(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + np.array(BACKGROUND) * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(kind: str) -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(PHOTO), kind)), PHOTO)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_are_close(kind: str) -> None:
    data = encoded(Image.fromarray(PHOTO), kind, quality=95)
    assert np.abs(pixels(data).astype(int) - PHOTO).max() <= 16


def test_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(PHOTO), "PNG"))
    np.testing.assert_array_equal(pixels(tmp_path / "a.jpg"), PHOTO)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "JPEG"])
def test_grey_is_repeated_in_three_channels(kind: str) -> None:
    grey = np.full((8, 9), 77, dtype=np.uint8)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey), kind)), np.full((8, 9, 3), 77))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    bits = RNG.random((9, 11)) < 0.5
    image = Image.fromarray((bits * 255).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(pixels(encoded(image, kind)), np.repeat(bits[..., None] * 255, 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    deep = RNG.integers(0, 65536, (24, 36), dtype=np.uint16)
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(deep), kind)), expected)


def test_big_endian_sixteen_bit_tiff_is_scaled() -> None:
    deep = RNG.integers(0, 65536, (24, 36), dtype=np.uint16)
    image = Image.frombytes("I;16B", (36, 24), deep.astype(">u2").tobytes())
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(encoded(image, "TIFF")), expected)


def test_sixteen_bit_colour_is_scaled() -> None:
    deep = RNG.integers(0, 65536, (5, 7, 3))
    np.testing.assert_array_equal(pixels(png(7, 5, 16, 2, png_rows(deep))), deep >> 8)


def test_sixteen_bit_grey_with_alpha_is_scaled_and_composited() -> None:
    deep = RNG.integers(0, 65536, (5, 7, 2))
    expected = over_background(np.repeat(deep[..., :1] >> 8, 3, axis=2), deep[..., 1] >> 8)
    np.testing.assert_allclose(pixels(png(7, 5, 16, 4, png_rows(deep))), expected, atol=1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_the_background(kind: str) -> None:
    image = Image.fromarray(np.dstack([PHOTO, ALPHA]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_allclose(pixels(encoded(image, kind, **options)), over_background(PHOTO, ALPHA), atol=1)


def test_grey_with_alpha() -> None:
    grey = PHOTO[..., 0]
    expected = over_background(np.repeat(grey[..., None], 3, axis=2), ALPHA)
    image = Image.fromarray(np.dstack([grey, ALPHA]))
    assert image.mode == "LA"
    np.testing.assert_allclose(pixels(encoded(image, "PNG")), expected, atol=1)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    image = Image.frombytes("P", (4, 3), indices.tobytes())
    image.putpalette(palette.tobytes())
    alphas = np.array([255, 0, 255 if transparency == 1 else 128])
    data = encoded(image, "PNG", transparency=transparency)
    np.testing.assert_allclose(pixels(data), over_background(palette[indices], alphas[indices]), atol=1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_key(mode: str) -> None:
    image = Image.new(mode, (4, 3), 10 if mode == "L" else (10, 10, 10))
    image.putpixel((0, 0), 200 if mode == "L" else (200, 200, 200))
    data = encoded(image, "PNG", transparency=200 if mode == "L" else (200, 200, 200))
    expected = np.full((3, 4, 3), 10)
    expected[0, 0] = BACKGROUND
    np.testing.assert_array_equal(pixels(data), expected)


def test_cmyk_is_converted() -> None:
    inks = (200, 100, 50, 30)
    data = encoded(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100)
    expected = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
    np.testing.assert_allclose(pixels(data)[8, 8], expected, atol=4)


def test_ycck_is_converted() -> None:
    """The same scan, declared YCCK by the Adobe marker: the reference is the formula of ITU-R BT.601."""
    stored = np.array([60, 150, 120, 200])  # Y, Cb, Cr, K
    data = encoded(Image.new("CMYK", (16, 16), tuple(255 - stored)), "JPEG", quality=100)
    transform = data.index(b"Adobe") + 11
    luma, blue, red = stored[0], stored[1] - 128, stored[2] - 128
    colour = np.array([luma + 1.402 * red, luma - 0.344 * blue - 0.714 * red, luma + 1.772 * blue])
    expected = (255 - colour) * stored[3] / 255
    converted = pixels(data[:transform] + b"\2" + data[transform + 1 :])[8, 8]
    np.testing.assert_allclose(converted, expected, atol=4)


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(PHOTO), kind, exif=exif, **options)
    np.testing.assert_array_equal(pixels(data), UPRIGHT[orientation](PHOTO))


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(Image.fromarray(PHOTO), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(data), PHOTO)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP", "AVIF"])
def test_first_frame_only(kind: str) -> None:
    frames = [Image.new("RGB", (12, 12), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixels(data), np.broadcast_to([250, 0, 0], (12, 12, 3)), atol=8)


REFUSED = {
    "empty": (b"", "not one of"),
    "text": (b"hello, world", "not one of"),
    "html": (b"<!DOCTYPE html><title>404</title>", "not one of"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not one of"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not one of"),
    "float tiff": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "floating-point"),
    "float pfm": (encoded(Image.new("F", (8, 8), 0.5), "PPM"), "floating-point"),
    "32-bit tiff": (encoded(Image.new("I", (8, 8), 70000), "TIFF"), "32-bit"),
    "png without pixels": (png(9, 9, 8, 2, b""), "cannot load"),
    "png cut in its header": (png(9, 9, 8, 2, b"")[:20], "Truncated"),
    "ztxt bomb": (
        png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)))),
        "too large",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(UnreadableImageError, match=reason):
        decode(data, LIMIT)


def jpeg_header(width: int, height: int) -> bytes:
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


@pytest.mark.parametrize(
    "data",
    [png(60000, 60000, 8, 2, b""), jpeg_header(65500, 65500), png(9000, 9000, 8, 2, b""), jpeg_header(12000, 12000)],
    ids=["png 3600 MP", "jpeg 4290 MP", "png 81 MP", "jpeg 144 MP"],
)
def test_bombs_are_refused_by_their_header(data: bytes) -> None:
    durations = []
    for _ in range(3):
        start = time.process_time()
        with pytest.raises(UnreadableImageError, match="pixels"):
            decode(data, LIMIT)
        durations.append(time.process_time() - start)
    assert min(durations) < 0.05


def test_the_limit_is_inclusive() -> None:
    data = encoded(Image.new("RGB", (20, 10)), "PNG")
    assert decode(data, 200).size == (20, 10)
    with pytest.raises(UnreadableImageError, match="20 x 10 pixels, more than max_pixels=199"):
        decode(data, 199)


NOISE = Image.fromarray(RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8))
WHOLE = {kind: encoded(NOISE, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind: str, share: float, tmp_path: Path) -> None:
    data = WHOLE[kind][: int(len(WHOLE[kind]) * share)]
    (tmp_path / "cut").write_bytes(data)
    for source in (data, tmp_path / "cut"):
        with pytest.raises(UnreadableImageError, match=r"[Tt]runcated|could not create decoder|not one of"):
            decode(source, LIMIT)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_damage_gives_an_image_or_the_declared_error(kind: str, damage: list[tuple[float, int]]) -> None:
    data = bytearray(WHOLE[kind])
    for place, value in damage:
        data[int(place**3 * (len(data) - 1))] = value  # mostly in the header, where readers fail in odd ways
    with contextlib.suppress(UnreadableImageError):
        assert decode(bytes(data), 1_000_000).mode == "RGB"


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("L", size), "PNG"), LIMIT).size == size


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, reason in (("fifo.jpg", "regular"), (".", "regular"), ("none.jpg", "no such"), ("loop.jpg", "no such")):
        with pytest.raises(UnreadableImageError, match=reason):
            decode(tmp_path / name, LIMIT)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # root, as in containers, may read everything

    (tmp_path / "a.png").write_bytes(WHOLE["PNG"])
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnreadableImageError, match=r"^Permission denied$"):
        decode(tmp_path / "a.png", LIMIT)


def test_running_out_of_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(UnreadableImageError, match="memory"):
        decode(WHOLE["PNG"], LIMIT)
