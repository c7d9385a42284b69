"""Decoded images lie in a file once; what is read from there are the same pixels, or the source is asked."""

import logging
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cjepa.config import RunConfig, load_yaml, parse
from cjepa.data import (
    ArraySource,
    CachedSource,
    DataConfig,
    FolderConfig,
    ImageSource,
    UnreadableImageError,
    device_images,
    open_source,
)
from cjepa.data.cache import PIXELS, TABLE, decoded_bytes
from cjepa.runs import caching
from cjepa.runs.caching import CACHE, cached
from cjepa.runs.pretraining import pretrain
from tests.data.conftest import colours  # noqa: F401
from tests.tiny_runs import write_config, write_images

LARGE = 1 << 24
CPU = torch.device("cpu")


@pytest.fixture
def source(colours: Path) -> ImageSource:  # noqa: F811
    return opened(colours)


def opened(folder: Path) -> ImageSource:
    return open_source(DataConfig(source=FolderConfig(path=folder)), 0).train


def same(left: ImageSource, right: ImageSource) -> bool:
    return all(np.array_equal(left.load(index), right.load(index)) for index in range(len(left)))


def test_pixels_names_and_labels_are_those_of_the_source(source: ImageSource, tmp_path: Path) -> None:
    found = cached(source, tmp_path / "cache", LARGE)
    assert isinstance(found, CachedSource)
    assert same(found, source)
    assert (found.names, found.classes, found.fingerprint) == (source.names, source.classes, source.fingerprint)
    assert found.uniform is None  # their sizes differ


def test_the_second_time_nothing_is_decoded(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(source, tmp_path / "cache", LARGE)
    monkeypatch.setattr(caching, "_write", lambda *_: pytest.fail("decoded again"))
    assert isinstance(cached(opened(source.root), tmp_path / "cache", LARGE), CachedSource)


def test_images_of_one_size_are_one_array(tmp_path: Path) -> None:
    source = opened(write_images(tmp_path / "images"))
    found = cached(source, tmp_path / "cache", LARGE)
    assert isinstance(found, CachedSource)
    assert found.uniform is not None
    assert found.uniform.shape == (48, 16, 16, 3)
    assert np.array_equal(found.uniform[7], source.load(7))


def test_damaged_pixels_are_in_no_array_that_is_read_without_checksums(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened(write_images(tmp_path / "images"))
    found = cached(source, tmp_path / "cache", LARGE)
    assert isinstance(found, CachedSource)
    content = bytearray((found.folder / PIXELS).read_bytes())
    content[-4096:] = bytes(4096)  # what a power cut leaves of a file that has its size but not yet its content
    (found.folder / PIXELS).write_bytes(content)
    again = cached(source, tmp_path / "cache", LARGE)
    assert isinstance(again, CachedSource)
    assert again.uniform is None
    assert "6 decoded images in" in caplog.text
    assert device_images(again, DataConfig(source=FolderConfig(path=tmp_path), image_size=16), CPU, 1e12) is None
    assert same(again, source)


@pytest.mark.parametrize("change", ["another image of the same size", "one image more", "written again"])
def test_a_changed_folder_is_decoded_again(colours: Path, tmp_path: Path, change: str) -> None:  # noqa: F811
    before = cached(opened(colours), tmp_path / "cache", LARGE)
    [path, *_] = sorted(colours.rglob("*.png"))
    if change == "one image more":
        (colours / "class-0" / "new.png").write_bytes(path.read_bytes())
    elif change == "written again":
        os.utime(path, ns=(1, 1))
    else:
        size = path.stat().st_size
        Image.new("RGB", (30, 20), (1, 2, 3)).save(path)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        assert path.stat().st_size == size
    after = cached(opened(colours), tmp_path / "cache", LARGE)
    assert isinstance(before, CachedSource)
    assert isinstance(after, CachedSource)
    assert after.folder != before.folder
    assert same(after, after.source)


def test_files_that_rows_of_parquet_name_may_change_too(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    rows = [{"bytes": None, "path": "0.png"}, None, {"bytes": None, "path": "gone.png"}]
    parquet.write_table(arrow.table({"image": arrow.array(rows, kind)}), tmp_path / "x.parquet")
    for colour in (10, 200):
        Image.new("RGB", (8, 8), (colour,) * 3).save(tmp_path / "0.png")
        source = opened(tmp_path / "x.parquet")
        found = cached(source, tmp_path / "cache", LARGE)
        assert isinstance(found, CachedSource)
        assert found.load(0).getpixel((0, 0)) == source.load(0).getpixel((0, 0)) == (colour,) * 3


def test_what_does_not_fit_is_read_as_before(
    source: ImageSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert cached(source, tmp_path / "cache", 40_000) is source
    assert "decoded anew each time; all of them would take about" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_an_estimate_that_was_too_low_does_not_fill_the_disk(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "decoded_bytes", lambda _: 1.0)
    assert cached(source, tmp_path / "cache", 40_000) is source
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".decoded.lock"]


def test_zero_is_never_and_images_in_memory_need_none(source: ImageSource, tmp_path: Path) -> None:
    array = ArraySource(np.zeros((3, 3, 4, 4), np.uint8), np.zeros(3, np.int64), ("a",))
    assert cached(source, tmp_path / "cache", 0) is source
    assert cached(array, tmp_path / "cache", LARGE) is array


def test_a_folder_that_cannot_be_written_costs_a_warning(
    source: ImageSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert cached(source, tmp_path / "file" / "cache", LARGE) is source
    assert "cannot be used" in caplog.text


@pytest.mark.usefixtures("without_locks")
def test_a_folder_without_locks_is_not_used(
    source: ImageSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What filelock does instead makes the next run wait for one that was killed on another machine, for ever."""
    with caplog.at_level(logging.WARNING):
        assert cached(source, tmp_path / "cache", LARGE) is source
    assert "its file system has no locks" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_left_alone(source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = caching.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    assert cached(source, tmp_path / "cache", LARGE) is source


def test_an_unreadable_image_stays_unreadable(colours: Path, tmp_path: Path) -> None:  # noqa: F811
    bad = sorted(colours.rglob("*.png"))[5]
    bad.write_bytes(b"broken")
    found = cached(opened(colours), tmp_path / "cache", LARGE)
    assert isinstance(found, CachedSource)
    index = list(found.names).index(str(bad.relative_to(colours)))
    with pytest.raises(UnreadableImageError, match="not one of"):
        found.load(index)
    assert np.array_equal(found.load(index + 1), found.source.load(index + 1))


def test_an_image_that_became_too_large_is_not_taken_from_decoded_ones(colours: Path, tmp_path: Path) -> None:  # noqa: F811
    cached(opened(colours), tmp_path / "cache", LARGE)
    config = DataConfig(source=FolderConfig(path=colours), max_pixels=700)
    found = cached(open_source(config, 0).train, tmp_path / "cache", LARGE)
    assert isinstance(found, CachedSource)
    assert found.load(0).size == (30, 20)
    with pytest.raises(UnreadableImageError, match="more than max_pixels=700"):
        found.load(len(found) - 1)


def test_damaged_pixels_are_read_from_the_source(source: ImageSource, tmp_path: Path) -> None:
    found = cached(source, tmp_path / "cache", LARGE)
    assert isinstance(found, CachedSource)
    pixels = found.folder / PIXELS
    content = bytearray(pixels.read_bytes())
    content[10] ^= 1
    pixels.write_bytes(content)
    assert same(CachedSource(source, found.folder), source)


@pytest.mark.parametrize("damage", ["cut pixels", "cut table", "empty table", "archive", "another table", "leftover"])
def test_what_is_not_whole_is_made_again(source: ImageSource, tmp_path: Path, damage: str) -> None:
    found = cached(source, tmp_path / "cache", LARGE)
    assert isinstance(found, CachedSource)
    if damage == "cut pixels":
        os.truncate(found.folder / PIXELS, 100)
    elif damage == "cut table":
        os.truncate(found.folder / TABLE, 100)
    elif damage == "empty table":  # what a power cut leaves
        os.truncate(found.folder / TABLE, 0)
    elif damage == "archive":
        (found.folder / TABLE).write_bytes(b"PK\3\4" + bytes(100))
    elif damage == "another table":
        np.save(found.folder / TABLE, np.zeros((3, 4), np.int64))
    else:
        found.folder.rename(found.folder.with_name(".tmp-decoded-left-by-a-kill"))
    again = cached(source, tmp_path / "cache", LARGE)
    assert isinstance(again, CachedSource)
    assert same(again, source)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".decoded.lock", again.folder.name]


def test_of_several_that_ask_at_once_one_decodes(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write, found = [], caching._write, []
    monkeypatch.setattr(caching, "_write", lambda *given: (written.append(1), write(*given)))
    threads = [
        threading.Thread(target=lambda: found.append(cached(source, tmp_path / "cache", LARGE))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert all(isinstance(each, CachedSource) for each in found)


def test_workers_map_the_file_instead_of_receiving_it(tmp_path: Path) -> None:
    source = opened(write_images(tmp_path / "images"))
    found = cached(source, tmp_path / "cache", LARGE)
    assert isinstance(found, CachedSource)
    assert same(found, source)
    text = pickle.dumps(found)
    assert found.pixels.nbytes > 3 * len(text) / 4
    assert same(pickle.loads(text), source)


def test_the_estimate_is_that_of_all_where_all_are_looked_at(source: ImageSource) -> None:
    assert decoded_bytes(source) == sum(3 * 30 * (20 + index) for index in range(24))


def run_config(tmp_path: Path, **changes: object) -> RunConfig:
    write_images(tmp_path / "images")
    config = parse(RunConfig, load_yaml(write_config(tmp_path)))
    source = FolderConfig(path=tmp_path / "images")
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source, **changes})})


def test_a_run_has_the_same_bits_with_and_without_and_leaves_nothing(tmp_path: Path) -> None:
    for name, changes in (("with", {}), ("without", {"cache_bytes": 0}), ("shared", {"cache": tmp_path / "cache"})):
        pretrain(run_config(tmp_path, **changes), tmp_path / name)
    metrics = {name: (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("with", "without", "shared")}
    assert metrics["with"] == metrics["without"] == metrics["shared"]
    assert not (tmp_path / "with" / CACHE).exists()
    assert len(list((tmp_path / "cache").glob("*/pixels"))) == 1


def test_the_log_says_how_long_images_were_waited_for(tmp_path: Path) -> None:
    pretrain(run_config(tmp_path), tmp_path / "run")
    assert "% was waiting for images" in (tmp_path / "run" / "train.log").read_text()
