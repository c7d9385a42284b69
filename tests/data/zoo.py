"""Odd image files, one of each kind that people's folders and strangers hold, made when needed."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, PngImagePlugin

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)
SMOOTH = Image.fromarray(np.add.outer(np.arange(40) * 3, np.arange(60) * 2)[..., None].repeat(3, 2).astype(np.uint8))
DEEP = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, body: bytes = b"", extra: bytes = b"") -> bytes:
    """8-bit RGB with this compressed body, or none."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    end = chunk(b"IDAT", body) + chunk(b"IEND", b"") if body else b""
    return b"\x89PNG\r\n\x1a\n" + header + extra + end


def zeros(count: int) -> bytes:
    """So many zeros, compressed a thousandfold without holding them."""
    compress, pieces = zlib.compressobj(9), []
    for _ in range(count // (1 << 20)):
        pieces.append(compress.compress(bytes(1 << 20)))
    return b"".join([*pieces, compress.compress(bytes(count % (1 << 20))), compress.flush()])


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def gif_of_size(width: int, height: int) -> bytes:
    data = encoded(Image.new("P", (8, 8)), "GIF")
    start = data.index(b"\x2c") + 5
    return (
        data[:6]
        + struct.pack("<HH", width, height)
        + data[10:start]
        + struct.pack("<HH", width, height)
        + data[start + 4 :]
    )


def bmp_of_size(width: int, height: int) -> bytes:
    data = encoded(Image.new("RGB", (8, 8)), "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def tiff_of_size(width: int, height: int) -> bytes:
    """An uncompressed TIFF whose tags claim another size."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "TIFF"))
    [start] = struct.unpack_from("<I", data, 4)
    [count] = struct.unpack_from("<H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        [tag] = struct.unpack_from("<H", data, entry)
        if tag in (256, 257):
            struct.pack_into("<HHII", data, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    """An extended WebP whose canvas claims another size, up to 2^24 a side."""
    data = encoded(PICTURE.convert("RGBA"), "WEBP", lossless=True, exif=exif(1))
    start = data.index(b"VP8X") + 12
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return data[:start] + sides + data[start + 6 :]


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def ycck() -> bytes:
    data = encoded(SMOOTH.convert("CMYK"), "JPEG")
    place = data.index(b"Adobe") + 11
    return data[:place] + b"\2" + data[place + 1 :]


def zeroed_scan() -> bytes:
    """A JPEG whose second half was lost to zeros, as on a failing disk: decoders fill it with grey."""
    data = encoded(PICTURE, "JPEG")
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 2) + data[-2:]


_FRAMES: dict[str, object] = {"save_all": True, "append_images": [Image.new("RGB", (60, 40))]}
_TEXT_BOMB = chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)))
_JPEG = encoded(PICTURE, "JPEG")

ZOO: dict[str, Callable[[], bytes]] = {
    # What must be read.
    "plain.jpg": lambda: _JPEG,
    "progressive.jpg": lambda: encoded(PICTURE, "JPEG", progressive=True),
    "png called.jpg": lambda: encoded(PICTURE, "PNG"),
    "cmyk.jpg": lambda: encoded(SMOOTH.convert("CMYK"), "JPEG"),
    "ycck.jpg": ycck,
    "grey.jpg": lambda: encoded(SMOOTH.convert("L"), "JPEG"),
    **{f"rotated {way}.png": (lambda way=way: encoded(PICTURE, "PNG", exif=exif(way))) for way in range(1, 9)},
    "grey alpha.png": lambda: encoded(PICTURE.convert("LA"), "PNG"),
    "alpha.png": lambda: encoded(PICTURE.convert("RGBA"), "PNG"),
    "palette with transparency.png": lambda: encoded(PICTURE.convert("P"), "PNG", transparency=bytes(range(256))),
    "one bit.png": lambda: encoded(PICTURE.convert("1"), "PNG"),
    "sixteen bits.png": lambda: encoded(DEEP, "PNG"),
    "sixteen bits.tiff": lambda: encoded(DEEP, "TIFF"),
    "pages.tiff": lambda: encoded(PICTURE, "TIFF", **_FRAMES),
    "moving.gif": lambda: encoded(PICTURE, "GIF", **_FRAMES),
    "moving.webp": lambda: encoded(PICTURE, "WEBP", lossless=True, **_FRAMES),
    "moving.apng": lambda: encoded(PICTURE, "PNG", **_FRAMES),
    "still.avif": lambda: encoded(SMOOTH, "AVIF"),
    "still.ppm": lambda: encoded(PICTURE, "PPM"),
    "dot.bmp": lambda: encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "BMP"),
    "line.png": lambda: encoded(Image.new("L", (5000, 1), 9), "PNG"),
    "sixty megapixels.png": lambda: png(10_000, 6_000, zeros(6_000 * (3 * 10_000 + 1))),
    "zeroed scan.jpg": zeroed_scan,
    # What must be refused, and why.
    "empty.jpg": lambda: b"",
    "text.png": lambda: b"404 not found",
    "drawing.svg.png": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "script.eps.jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/bin/sh) (w) file\n",
    "pickle.png": lambda: b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "cut at 300 bytes.jpg": lambda: _JPEG[:300],
    "cut at 60 percent.jpg": lambda: _JPEG[: len(_JPEG) * 6 // 10],
    "cut.png": lambda: encoded(PICTURE, "PNG")[:2000],
    "cut.webp": lambda: encoded(PICTURE, "WEBP")[:600],
    "float.tiff": lambda: encoded(Image.new("F", (9, 9), 0.5), "TIFF"),
    "32 bits.tiff": lambda: encoded(Image.new("I", (9, 9), 70_000), "TIFF"),
    "81 megapixels.png": lambda: png(9_000, 9_000, zeros(9_000 * 27_001)),
    "144 megapixels.jpg": lambda: jpeg_of_size(12_000, 12_000),
    "196 megapixels.png": lambda: png(14_000, 14_000, zeros(1 << 20)),
    "3600 megapixels.png": lambda: png(60_000, 60_000),
    "4290 megapixels.jpg": lambda: jpeg_of_size(65_500, 65_500),
    "4290 megapixels.gif": lambda: gif_of_size(65_500, 65_500),
    "10000 megapixels.bmp": lambda: bmp_of_size(100_000, 100_000),
    "10000 megapixels.tiff": lambda: tiff_of_size(100_000, 100_000),
    "268 megapixels.webp": lambda: webp_of_size(16_383, 16_383),
    "text bomb.png": lambda: png(1, 1, zeros(4), _TEXT_BOMB),
    "more pixels than said.png": lambda: png(2, 2, zeros(300 << 20)),
}
BOMBS = tuple(name for name in ZOO if "megapixels" in name and not name.startswith("sixty"))
