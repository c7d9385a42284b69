"""Decode one image of any common kind to RGB, or say why not: never another exception, never a huge allocation."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cjepa.errors import CjepaError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats read by content, whatever the file is called. Others of Pillow run programs (EPS) or are rarely tested."""

BACKGROUND = (128, 128, 128)
"""What shows through transparent pixels: mid grey lies near the mean of photographs, so that they enter the encoder
near zero after normalisation; black or white would add the strongest edges of the image around every cut-out."""

PILLOW_LIMIT = 178_956_970
"""Pillow itself refuses more pixels than this (twice Image.MAX_IMAGE_PIXELS), so max_pixels cannot exceed it."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(CjepaError, ValueError):
    """An image could not be decoded; the message is the reason, without the name."""


def decode(source: Path | bytes, max_pixels: int) -> Image.Image:
    """The first frame of an image file, or of its bytes, upright and in mode RGB.

    The size in the header is held against max_pixels before any pixel is decoded. EXIF orientation is applied;
    transparency is laid over BACKGROUND; 16 bits are scaled to 8 (>> 8); CMYK is converted; colour profiles are
    ignored. Raises UnreadableImageError for everything else: other formats, truncated files, floating point.
    """
    try:
        with warnings.catch_warnings():  # Pillow warns about odd metadata; what matters it raises
            warnings.simplefilter("ignore")
            return _decode(source, max_pixels)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"not one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"more than {PILLOW_LIMIT} pixels") from error
    except MemoryError as error:
        raise UnreadableImageError("not enough memory to decode it") from error
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow's readers of damaged files raise nearly anything
        raise UnreadableImageError(f"damaged ({type(error).__name__}: {error})") from error


def stored_size(path: Path) -> tuple[int, int] | None:
    """Width and height in the header of an image file, before EXIF turns it; None where there is nothing to read."""
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            return image.size
    except Exception:  # whatever Pillow raises of it, decode says why
        return None


def _decode(source: Path | bytes, max_pixels: int) -> Image.Image:
    if isinstance(source, Path):
        if not source.is_file():  # opening a FIFO would wait for ever
            raise UnreadableImageError("not a regular file" if source.exists() else "no such file")
        with source.open("rb") as file:
            return _read(file, max_pixels)
    return _read(io.BytesIO(source), max_pixels)


def _read(file: io.BufferedReader | io.BytesIO, max_pixels: int) -> Image.Image:
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise UnreadableImageError(
                f"{width} x {height} pixels, more than max_pixels={max_pixels} (raise data.max_pixels to use it)"
            )
        image.load()
        return _upright(_as_rgb(image), _orientation(image))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no stated range; convert them to 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_sixteen_bits(image)
    if image.has_transparency_data:
        return _over_background(image.convert("RGBA"))
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, scaled: convert("RGB") would clip at 255 and leave a white image."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # those two hold 16 bits in this mode
        raise UnreadableImageError("32-bit pixels have no stated range; convert them to 8 or 16 bits")
    grey = (np.asarray(image) >> 8).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _over_background(image: Image.Image) -> Image.Image:
    backed = Image.new("RGB", image.size, BACKGROUND)
    backed.paste(image, mask=image.getchannel("A"))
    return backed


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or the EXIF block is damaged: the pixels are still good."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, OSError, KeyError, IndexError, struct.error):
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)
