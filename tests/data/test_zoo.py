"""A folder as people have them: every oddity at once, trained on without a stop, each reported by name."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cjepa.data import DataConfig, FolderConfig, TrainingStream, UnreadableImageError, decode, iterate, open_source
from cjepa.data.source import ImageSource
from cjepa.types import Masks
from tests.data import golden
from tests.data.zoo import BOMBS, ZOO, encoded, exif

TABLE = json.loads(golden.TABLE.read_text())
FILES = {name: ZOO[name]() for name in ZOO if name != "sixty megapixels.png"}  # which takes a second each time
GOOD = {name for name in FILES if TABLE[name]["outcome"] == "read" and name.rpartition(".")[2] != "svg"}
BAD = set(FILES) - GOOD
ODD_NAMES = {"plain.jpg": "a/b/c/new\nline.jpg", "alpha.png": "-leading dash.png", "still.ppm": "grüße 图.ppm"}
"""Names under which some of them lie; those beside an exclamation mark or a bar run no shell either."""


@pytest.fixture
def zoo(tmp_path: Path) -> ImageSource:
    for name, data in FILES.items():
        path = tmp_path / ODD_NAMES.get(name, name)
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
    assert set(zoo.names) == {ODD_NAMES.get(name, name) for name in FILES}


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
    assert {zoo.names[index] for index in used} == {ODD_NAMES.get(name, name) for name in GOOD}
    assert reported == BAD


# --- the golden table -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """The zoo decoded in a process that may have 2 GB of address space."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc to measure memory")
    answer = subprocess.run([sys.executable, golden.__file__], capture_output=True, text=True, check=True, timeout=200)
    rows: dict[str, dict[str, Any]] = json.loads(answer.stdout)
    return rows


def test_the_zoo_is_large_and_so_are_its_bombs() -> None:
    assert len(ZOO) >= 30
    assert set(TABLE) == set(ZOO)
    assert len(BOMBS) >= 8


@pytest.mark.parametrize("name", ZOO)
def test_outcome_and_pixels_are_those_of_the_table(measured: dict[str, dict[str, Any]], name: str) -> None:
    row, expected = measured[name], TABLE[name]
    if expected["outcome"] != "read":
        assert row["outcome"] == expected["outcome"]
        return
    assert row["outcome"] == "read"
    assert row["size"] == expected["size"]
    lossy = name.endswith((".jpg", ".avif", ".webp", ".gif")) and name != "png called.jpg"
    if lossy:  # the last bits are the codec's, whose versions differ
        assert row["mean"] == pytest.approx(expected["mean"], abs=3)
    else:
        assert row["sha256"] == expected["sha256"]


@pytest.mark.parametrize("name", ZOO)
def test_memory_is_bounded_as_stated(measured: dict[str, dict[str, Any]], name: str) -> None:
    """16 bytes a pixel of what is decoded (DataConfig.max_pixels), and nearly nothing for what is refused."""
    width, height = measured[name].get("size", (0, 0))
    assert measured[name]["mebibytes"] <= 16 * width * height / 2**20 + 8


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header_in_milliseconds(measured: dict[str, dict[str, Any]], name: str) -> None:
    assert measured[name]["outcome"] != "read"
    assert measured[name]["milliseconds"] < 50


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "LA", "P", "CMYK"])
def test_the_largest_images_fit_into_what_is_stated(mode: str) -> None:
    """4 megapixels of each mode, turned upright, which needs a second copy."""
    image = Image.new(
        mode, (2000, 2000), 7 if mode in ("I;16", "P") else tuple([7] * len(mode)) if mode != "LA" else (7, 7)
    )
    data = encoded(image, "TIFF" if mode in ("CMYK", "I;16") else "PNG", exif=exif(6))
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from tests.data import golden; from pathlib import Path\n"
        "decoding = golden.loaded('decoding', golden.ROOT / 'src/cjepa/data/decoding.py')\n"
        "data = Path(sys.argv[3]).read_bytes(); decoding.decode(data, 10**8); import gc; gc.collect()\n"
        "golden.forget_peak(); before = golden.peak(); decoding.decode(data, 10**8); print(golden.peak() - before)"
    )
    with tempfile.NamedTemporaryFile(suffix=".img") as file:
        file.write(data)
        file.flush()
        command = [sys.executable, "-c", script, str(golden.ROOT / "src"), str(golden.ROOT), file.name]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(answer.stdout) * 1024 <= 16 * 4_000_000 + (8 << 20)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_mutated_files_give_an_image_or_the_declared_error(
    name: str, edits: list[tuple[float, bytes]], kept: float
) -> None:
    data = FILES[name]
    for place, replacement in edits:
        start = int(place**3 * len(data))
        data = data[:start] + replacement + data[start + len(replacement) :]
    with contextlib.suppress(UnreadableImageError):
        assert decode(data[: max(int(len(data) * (1 - kept**4)), 1)], 1_000_000).mode == "RGB"
