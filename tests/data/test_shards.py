"""Shards read by offset: equal to the files they hold, and every damage is either an unreadable image or a refusal."""

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cjepa.data import (
    DataConfig,
    FolderConfig,
    ShardsConfig,
    UnreadableImageError,
    open_source,
    shard_contents,
    shard_index,
    shards,
)
from cjepa.data.shard_contents import read_shard
from cjepa.data.shard_index import INDEX, MANIFEST
from cjepa.data.shards import ShardSource, open_shards
from cjepa.data.source import ImageSource
from cjepa.errors import InputError
from cjepa.runs.sharding import index_shards
from tests.data.packing import assert_threads_read, picture, write_shards, write_tar


def opened(folder: Path, index: Path | None = None) -> ShardSource:
    source = open_shards(ShardsConfig(path=folder, index=index), 100_000).train
    assert isinstance(source, ShardSource)
    return source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of four pictures, indexed."""
    folder = write_shards(tmp_path_factory.mktemp("made") / "shards")
    index_shards(folder, folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


def test_images_names_and_labels_are_those_in_the_archives(folder: Path) -> None:
    source = opened(folder)
    assert isinstance(source, ImageSource)
    assert source.names == [f"{number:06d}.png" for number in range(12)]
    assert source.classes == ("0", "1", "2")
    assert source.labels.tolist() == [number % 3 for number in range(12)]
    for number in (5, 0, 11, 4, 3):
        assert source.encoded(number) == picture(number)
        assert source.load(number).mode == "RGB"


def test_without_labels_there_are_none(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, labels=False)
    index_shards(folder, folder)
    source = opened(folder)
    assert source.classes == ()
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [-1] * 12
    assert not (folder / INDEX / "labels").exists()


def test_an_index_may_lie_elsewhere_and_the_data_stay_untouched(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    index_shards(folder, tmp_path / "index")
    source = opened(folder, tmp_path / "index")
    assert source.encoded(7) == picture(7)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(InputError, match=r"has no index of shards .*make one with: cjepa shard --index-only"):
        opened(folder)


def test_a_bare_path_is_recognised(folder: Path) -> None:
    source = open_source(DataConfig(source=FolderConfig(path=folder)), 0).train
    assert isinstance(source, ShardSource)


def test_train_and_test_are_splits_with_common_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "0.tar", {"a.png": picture(0), "a.cls": b"1", "b.png": picture(1), "b.cls": b"3"})
    write_tar(tmp_path / "val" / "0.tar", {"c.png": picture(2), "c.cls": b"2", "d.png": picture(3), "d.cls": b"3"})
    index_shards(tmp_path, tmp_path)
    splits = open_source(DataConfig(source=FolderConfig(path=tmp_path)), 0)
    assert splits.test is not None
    assert splits.train.classes == splits.test.classes == ("1", "2", "3")
    assert splits.train.labels.tolist() == [0, 2]
    assert splits.test.labels.tolist() == [1, 2]
    assert splits.test.names == ["c.png", "d.png"]


def test_a_copy_in_another_process_maps_the_index_again(folder: Path) -> None:
    source = opened(folder)
    source.load(0)
    frozen = pickle.dumps(source)
    assert len(frozen) < 4000
    copy = pickle.loads(frozen)
    assert isinstance(copy.labels, np.memmap)
    assert copy.names == source.names
    assert copy.encoded(9) == source.encoded(9)


def test_a_forked_process_has_its_own_position_in_the_file(folder: Path) -> None:
    """File objects survive a fork with a common position: reading in one would move the other."""
    source = opened(folder)
    source.encoded(0)
    [file] = source._files._open.values()
    before = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    child = os.fork()
    if child == 0:
        good = source.encoded(2) == picture(2) and [*source._files._open.values()] != [file]
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == before


def test_few_shards_are_open_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    source = opened(folder)
    for number in (0, 4, 8, 0, 8, 4):
        assert source.encoded(number) == picture(number)
        assert len(source._files._open) <= 2


def test_threads_read_from_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    contents = [bytes([number]) * 20_000 for number in range(60)]  # each is a read of its own
    for first in range(0, 60, 20):
        files = {f"{first + number:03d}.png": content for number, content in enumerate(contents[first : first + 20])}
        write_tar(tmp_path / f"{first:02d}.tar", files)
    index_shards(tmp_path, tmp_path)
    assert_threads_read(opened(tmp_path), contents, 10)


# --- what other people put into archives ------------------------------------------------------------------------------


def test_only_images_and_their_labels_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads lie beside the images; the marker that they would leave is never written."""
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {marker}",)

    evil = pickle.dumps(Payload())
    folder = tmp_path / "data"
    write_tar(
        folder / "pipe:touch marker.tar".replace(":", " "),
        {
            "0.pyd": evil,
            "0.png": picture(0),
            "0.pickle": evil,
            "0.cls": b"cat",
            "1.jpg": evil,
            "1.json": b'{"__reduce__": "!!python/object/apply:os.system"}',
            "1.yaml": b"!!python/object/apply:os.system [touch marker]",
            "2.png": picture(2),
            "2.cls": b"dog",
            "$(touch marker).png": picture(3),
        },
        links=[("link.png", "/etc/passwd"), ("up", "../..")],
    )
    [done] = index_shards(folder, folder)
    assert done.images == 4
    assert done.others == {".pyd": 1, ".pickle": 1, ".cls": 2, ".json": 1, "other": 1}
    source = opened(folder)
    assert source.names == ["0.png", "1.jpg", "2.png", "$(touch marker).png"]
    assert source.labels.tolist() == [0, -1, 1, -1]
    source.load(0)
    with pytest.raises(UnreadableImageError, match="not one of"):
        source.load(1)
    assert not marker.exists()


def test_each_image_of_a_sample_counts_and_has_its_label(tmp_path: Path) -> None:
    files = {"a/7.left.png": picture(1), "a/7.right.png": picture(2), "a/7.cls": b"x", "b/7.png": picture(3)}
    contents = read_shard(write_tar(tmp_path / "0.tar", files | {"b/7.cls": b"y", "b/8.txt": b"no image"}))
    assert contents.names.names() == ["a/7.left.png", "a/7.right.png", "b/7.png"]
    assert contents.labels == ["x", "x", "y"]
    assert contents.others == {".cls": 2, ".txt": 1}


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    """macOS puts one before each file of a sample: among the images they were unreadable, and labels were lost."""
    files = {f"{place}0.{kind}": b"x" for kind in ("png", "cls") for place in ("._", "", "@eaDir/0.png/", "__MACOSX/")}
    contents = read_shard(write_tar(tmp_path / "0.tar", files))
    assert contents.names.names() == ["0.png"]
    assert contents.labels == ["x"]
    assert contents.others == {".cls": 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../up.png": b"x"}, r"0\.tar cannot be used: .*'\.\./up\.png', which is no name below a folder"),
        ({"1.png": b"x", "1.cls": b"\xff\xfe"}, r"1\.cls is no label in UTF-8"),
        ({"1.png": b"x", "1.cls": b"x" * 70_000}, r"1\.cls has 70,000 bytes and is no label"),
        ({"1.png": b"x", "1.json": b'{"cjepa": {"name": "/etc/passwd"}}'}, "no name below a folder"),
        ({f"1.{index}.png": b"" for index in range(10_001)}, "more than 10,000 files belong to 1"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_shard(write_tar(tmp_path / "0.tar", files))


@pytest.mark.parametrize(
    "json_",
    [b"", b"null", b"[1]", b'{"cjepa": 3}', b'{"cjepa": {"name": 3}}', b'{"name": "Ada"}', b"[" * 5000, b"\xff"],
)
def test_json_of_other_tools_means_nothing(tmp_path: Path, json_: bytes) -> None:
    contents = read_shard(write_tar(tmp_path / "0.tar", {"1.png": b"x", "1.json": json_, "1.cls": b"c"}))
    assert contents.names.names() == ["1.png"]
    assert contents.labels == ["c"]


def test_an_image_of_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_contents, "LARGEST_IMAGE", 10)
    with pytest.raises(InputError, match=r"1\.png has 11 bytes, more than 10"):
        read_shard(write_tar(tmp_path / "0.tar", {"1.png": b"x" * 11}))


def test_a_bomb_in_a_shard_is_an_unreadable_image(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (2000, 2000)).save(file, "PNG")
    write_tar(tmp_path / "0.tar", {"bomb.png": file.getvalue(), "good.png": picture(0)})
    index_shards(tmp_path, tmp_path)
    with pytest.raises(UnreadableImageError, match="more than max_pixels=100000"):
        opened(tmp_path).load(0)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_makes_its_image_unreadable_and_no_other(folder: Path) -> None:
    path = folder / "part-0001.tar"
    content = bytearray(path.read_bytes())
    position = content.index(picture(6)) + 40
    content[position] ^= 1
    path.write_bytes(content)
    source = opened(folder)
    with pytest.raises(UnreadableImageError, match="damaged: its checksum is not the one in the index"):
        source.load(6)
    assert [source.encoded(number) == picture(number) for number in (4, 5, 7)] == [True] * 3


def change(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"truncated": content[:-512], "empty": b"", "longer": content + b"\0"}[how])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"part-0001\.tar is missing; bring back .*cjepa shard --index-only"),
        ("folder", r"part-0001\.tar is not a file"),
        ("truncated", r"part-0001\.tar has 19,968 bytes instead of 20,480"),
        ("empty", r"part-0001\.tar has 0 bytes"),
        ("longer", r"part-0001\.tar has 20,481 bytes"),
    ],
)
def test_a_shard_that_is_missing_or_of_another_size_stops_the_run(folder: Path, how: str, message: str) -> None:
    running = opened(folder)
    change(folder / "part-0001.tar", how)
    with pytest.raises(InputError, match=message):
        opened(folder)
    assert running.encoded(0) == picture(0)
    with pytest.raises(InputError, match=message):  # also when it happens while a run reads
        running.load(5)


def test_shards_that_changed_places_stop_the_run(folder: Path) -> None:
    (folder / "part-0000.tar").rename(folder / "x")
    (folder / "part-0001.tar").rename(folder / "part-0000.tar")
    (folder / "x").rename(folder / "part-0001.tar")
    assert len({path.stat().st_size for path in folder.glob("*.tar")}) == 1
    with pytest.raises(InputError, match=r"part-0000\.tar is not the one that was indexed \(it begins differently\)"):
        opened(folder).load(0)


def test_how_many_shards_are_missing_is_said(folder: Path) -> None:
    (folder / "part-0000.tar").unlink()
    (folder / "part-0002.tar").unlink()
    with pytest.raises(InputError, match=r"part-0000\.tar is missing \(2 of 3 shards are not as indexed\)"):
        opened(folder)


def files_of_index(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / INDEX).iterdir())


def test_every_byte_of_the_index_is_verified(folder: Path) -> None:
    assert files_of_index(folder) == ["checksums", MANIFEST, "labels", "name_ends", "names", "offsets", "sizes"]
    for name in files_of_index(folder):
        path = folder / INDEX / name
        content = path.read_bytes()
        for position in range(0, len(content), 19 if name == MANIFEST else 5):
            flipped = bytearray(content)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(InputError, match=r"the index .* cannot be used: .*cjepa shard --index-only"):
                opened(folder)
        path.write_bytes(content)
    assert opened(folder).encoded(3) == picture(3)


def test_an_index_that_lies_apart_is_made_again_from_the_shards(folder: Path, tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    apart.mkdir()
    (folder / INDEX).rename(apart / INDEX)
    assert opened(folder, apart).encoded(3) == picture(3)
    (apart / INDEX / "names").write_bytes(b"")
    with pytest.raises(InputError, match=f"cjepa shard --index-only {folder} {apart}$"):
        opened(folder, apart)


@pytest.mark.parametrize("how", ["missing", "empty", "shorter", "longer"])
def test_files_of_the_index_that_are_missing_or_cut(folder: Path, how: str) -> None:
    for name in files_of_index(folder):
        path = folder / INDEX / name
        content = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes({"empty": b"", "shorter": content[:-1], "longer": content + b"\0"}[how])
        with pytest.raises(InputError, match=r"has no index of shards|cannot be used"):
            opened(folder)
        path.write_bytes(content)


def signed(folder: Path, **changes: object) -> None:
    """A stranger can sign a manifest as well as we can."""
    path = folder / INDEX / MANIFEST
    values = json.loads(path.read_bytes()) | changes | {"checksum": ""}
    plain = json.dumps(values, indent=0, sort_keys=True) + "\n"
    values["checksum"] = hashlib.sha256(plain.encode()).hexdigest()
    path.write_text(json.dumps(values, indent=0, sort_keys=True) + "\n")


def rewritten(folder: Path, name: str, numbers: list[int]) -> None:
    """A column with other numbers, and the manifest that fits it."""
    content = np.array(numbers, shard_index.TYPES[name]).tobytes()  # type: ignore[index]
    (folder / INDEX / name).write_bytes(content)
    columns = json.loads((folder / INDEX / MANIFEST).read_bytes())["columns"]
    columns[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    signed(folder, columns=columns)


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("offsets", [2**63] * 12, "offsets lie outside"),
        ("offsets", [0] * 12, "offsets lie outside"),
        ("sizes", [2**32 - 1] * 12, "offsets lie outside"),
        ("labels", [3] + [0] * 11, "labels name classes"),
        ("labels", [-2] + [0] * 11, "labels name classes"),
        ("name_ends", [120] * 11 + [0], "name_ends do not ascend"),
        ("name_ends", [2**62] * 12, "name_ends do not ascend"),
        ("name_ends", [10] * 12, "name_ends do not ascend"),
        ("name_ends", [*range(1, 13)], "names and name_ends contradict"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused_before_anything_is_read(
    folder: Path, name: str, numbers: list[int], message: str
) -> None:
    rewritten(folder, name, numbers)
    with pytest.raises(InputError, match=message):
        opened(folder)


@pytest.mark.parametrize(
    "name",
    ["../x.tar", "/etc/passwd.tar", "a/../../x.tar", ".hidden.tar", "C:x.tar", "a\\x.tar", "x.tar\n", "x.png", ""],
)
def test_shard_names_are_plain(folder: Path, name: str) -> None:
    listed = json.loads((folder / INDEX / MANIFEST).read_bytes())["shards"]
    listed[0]["name"] = name
    signed(folder, shards=listed)
    with pytest.raises(InputError, match=r"shards\.0\.name"):
        opened(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 2},
        {"images": 13},
        {"images": 0},
        {"images": -1},
        {"images": 2**60},
        {"shards": []},
        {"classes": []},
        {"columns": {}},
        {"more": 1},
    ],
)
def test_other_manifests_are_refused(folder: Path, changes: dict[str, object]) -> None:
    signed(folder, **changes)
    with pytest.raises(InputError, match="cannot be used"):
        opened(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_gives_declared_errors_only(folder: Path, data: st.DataObject) -> None:
    """Index or shards, overwritten, cut or extended anywhere: images are right, unreadable, or the run stops."""
    path = data.draw(st.sampled_from(sorted([*folder.glob("*.tar"), *(folder / INDEX).iterdir()])))
    content = path.read_bytes()
    changed = bytearray(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    for _ in range(data.draw(st.integers(0, 3))):
        position = data.draw(st.integers(0, len(content)))
        new = data.draw(st.binary(min_size=1, max_size=20))
        changed[position : position + len(new)] = new
    try:
        path.write_bytes(changed)
        source = opened(folder)
        assert len(source) == 12
        for number in range(12):
            try:
                assert source.encoded(number) == picture(number)
            except UnreadableImageError:
                continue
    except InputError:
        pass
    finally:
        path.write_bytes(content)


def test_fingerprints_differ_with_the_images(tmp_path: Path) -> None:
    prints = set()
    for number, files in enumerate(
        (
            {"a.png": picture(0), "b.png": picture(1)},
            {"a.png": picture(0), "b.png": picture(2)},
            {"a.png": picture(0), "c.png": picture(1)},
            {"a.png": picture(0), "a.cls": b"x", "b.png": picture(1), "b.cls": b"y"},
        )
    ):
        folder = tmp_path / str(number)
        write_tar(folder / "0.tar", files)
        index_shards(folder, folder)
        prints.add(opened(folder).fingerprint)
    assert len(prints) == 4
    index_shards(tmp_path / "3", tmp_path / "again")
    assert opened(tmp_path / "3", tmp_path / "again").fingerprint in prints


def test_an_unlabelled_image_among_labelled_ones(tmp_path: Path) -> None:
    labelled = {"a.png": picture(0), "a.cls": b"x", "c.png": b"", "c.cls": b"y"}
    write_tar(tmp_path / "0.tar", {"0.png": picture(1), **labelled})
    index_shards(tmp_path, tmp_path)
    assert opened(tmp_path).labels.tolist() == [-1, 0, 1]


def test_a_shard_may_hold_no_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"notes.txt": b"none"})
    write_tar(tmp_path / "1.tar", {"a.png": picture(0), "b.png": picture(1)})
    write_tar(tmp_path / "2.tar", {})
    write_tar(tmp_path / "3.tar", {"c.png": picture(2)})
    index_shards(tmp_path, tmp_path)
    source = opened(tmp_path)
    assert [source.encoded(number) == picture(number) for number in range(3)] == [True] * 3


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder; give the folder that holds the tar shards"):
        opened(tmp_path / "none")
