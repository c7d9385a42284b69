"""`cjepa shard`: the same images in other files, made once, continued after any kill, equal to an index made anew."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner, Result

from cjepa.cli import app
from cjepa.data import DataConfig, FolderConfig, ImageSource, ShardSource, Splits, UnreadableImageError, open_source
from cjepa.errors import InputError, StoppedEarly
from cjepa.runs import index_shards, shard_images, shard_writing
from cjepa.runs.shard_writing import Packing
from cjepa.runs.sharding import data_of
from tests.data.packing import picture, write_shards
from tests.tiny_runs import write_images


def cjepa(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    return " ".join(result.output.split())


def data(path: Path) -> DataConfig:
    return DataConfig(source=FolderConfig(path=path))


def opened(path: Path) -> Splits:
    return open_source(data(path), 0)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """20 pictures of three classes, two of them without a class, one damaged, one of them a JPEG of 40 x 60."""
    folder = tmp_path / "images"
    for number in range(18):
        place = folder / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02d}.png").write_bytes(picture(number))
    (folder / "a" / "no image.png").write_bytes(b"404 not found")
    Image.fromarray(np.full((40, 60, 3), 77, np.uint8)).save(folder / "large.dots.jpg")
    return folder


def assert_same_images(left: ImageSource, right: ImageSource) -> None:
    assert list(left.names) == list(right.names)
    assert left.classes == right.classes
    np.testing.assert_array_equal(left.labels, right.labels)
    for index in range(len(left)):
        try:
            pixels = np.asarray(left.load(index))
        except UnreadableImageError as error:
            with pytest.raises(UnreadableImageError, match=str(error)):
                right.load(index)
        else:
            np.testing.assert_array_equal(pixels, np.asarray(right.load(index)))


def test_shards_hold_the_images_of_the_folder(images: Path, tmp_path: Path) -> None:
    [done] = shard_images(data(images), tmp_path / "out", Packing(images_per_shard=7))
    assert (done.images, done.shards, done.undecodable) == (20, 3, 0)
    shards = opened(tmp_path / "out").train
    assert isinstance(shards, ShardSource)
    assert_same_images(opened(images).train, shards)


def test_other_tools_can_read_them(images: Path, tmp_path: Path) -> None:
    """The WebDataset layout: members of a sample share a key and stand together; .cls is a number."""
    shard_images(data(images), tmp_path / "out", Packing(images_per_shard=7))
    source, samples = opened(images).train, {}
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                content = tar.extractfile(member)
                assert content is not None
                samples.setdefault(key, {})[extension] = content.read()
    assert list(samples) == [f"{number:09d}" for number in range(20)]
    for index, sample in enumerate(samples.values()):
        label = int(source.labels[index])
        assert sample.get("cls") == (b"%d" % label if label >= 0 else None)
        assert json.loads(sample["json"])["cjepa"]["name"] == source.names[index]


def test_the_shorter_side_is_reduced(images: Path, tmp_path: Path) -> None:
    [done] = shard_images(data(images), tmp_path / "out", Packing(size=14), workers=2)
    assert done.undecodable == 1
    before, after = opened(images).train, opened(tmp_path / "out").train
    assert list(before.names) == list(after.names)
    for index, name in enumerate(before.names):
        if name == "a/no image.png":
            with pytest.raises(UnreadableImageError):
                after.load(index)
            continue
        old, new = before.load(index), after.load(index)
        if min(old.size) <= 14:
            np.testing.assert_array_equal(np.asarray(old), np.asarray(new))
        else:
            assert min(new.size) == 14
            assert new.width / new.height == pytest.approx(old.width / old.height, abs=1 / 14)
    large = after.load(list(after.names).index("large.dots.jpg"))
    assert large.size == (21, 14)
    assert np.abs(np.asarray(large, np.int16) - 77).max() <= 2


def test_png_keeps_what_resizing_gave(images: Path, tmp_path: Path) -> None:
    shard_images(data(images), tmp_path / "out", Packing(size=8, format="png"))
    after, before = opened(tmp_path / "out").train, opened(images).train
    small = before.load(0).resize(after.load(0).size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    np.testing.assert_array_equal(np.asarray(after.load(0)), np.asarray(small))


def test_the_result_does_not_depend_on_the_workers(images: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        shard_images(data(images), tmp_path / str(workers), Packing(size=10, images_per_shard=6), workers=workers)
    assert tree(tmp_path / "1") == tree(tmp_path / "3")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_splits_become_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train", count=3)
    write_images(tmp_path / "images" / "validation", ("a", "d"), count=2)
    done = shard_images(data(tmp_path / "images"), tmp_path / "out", Packing())
    assert [each.folder.name for each in done] == ["train", "test"]
    before, after = opened(tmp_path / "images"), opened(tmp_path / "out")
    assert before.test is not None
    assert after.test is not None
    assert_same_images(before.train, after.train)
    assert_same_images(before.test, after.test)


def test_an_index_made_anew_is_the_same(images: Path, tmp_path: Path) -> None:
    shard_images(data(images), tmp_path / "out", Packing(images_per_shard=6))
    [done] = index_shards(tmp_path / "out", tmp_path / "index")
    assert tree(tmp_path / "index" / "cjepa-index") == tree(tmp_path / "out" / "cjepa-index")
    assert done.others == {".cls": 19, ".json": 20}


def test_shards_can_be_packed_again(images: Path, tmp_path: Path) -> None:
    shard_images(data(images), tmp_path / "one", Packing(images_per_shard=6))
    shard_images(data(tmp_path / "one"), tmp_path / "two", Packing(images_per_shard=9))
    assert_same_images(opened(images).train, opened(tmp_path / "two").train)


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"a\\b.png", b"1:2.png"])
def test_any_name_can_be_packed(name: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, each in enumerate((name, b"plain.png")):
        try:
            with open(os.path.join(os.fsencode(folder), each), "wb") as file:  # noqa: PTH118, PTH123  Path takes no bytes
                file.write(picture(number))
        except OSError:
            pytest.skip("this file system takes no such names")
    shard_images(data(folder), tmp_path / "out", Packing())
    assert_same_images(opened(tmp_path / "out").train, opened(folder).train)


def test_a_strip_that_is_too_long_for_jpeg_is_kept(tmp_path: Path) -> None:
    strip = tmp_path / "images" / "strip.png"
    strip.parent.mkdir()
    Image.new("RGB", (70_000, 17)).save(strip)
    (tmp_path / "images" / "usual.png").write_bytes(picture(0))
    shard_images(data(tmp_path / "images"), tmp_path / "out", Packing(size=16))
    assert opened(tmp_path / "out").train.load(0).size == (70_000, 17)


@pytest.mark.parametrize("name", [b"a:b.tar", b"a\\b.tar", b"caf\xe9.tar"])
def test_a_shard_that_an_index_cannot_name_is_refused_before_any_is_read(name: bytes, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shards=1)
    try:
        os.rename(tmp_path / "shards" / "part-0000.tar", os.path.join(os.fsencode(tmp_path / "shards"), name))  # noqa: PTH104, PTH118
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(InputError, match=r"an index cannot name a shard .*; rename it"):
        index_shards(tmp_path / "shards", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_split_of_one_class_keeps_its_labels(tmp_path: Path) -> None:
    """It is the other split that makes it one of several."""
    for place in ("train/a/1", "train/b/2", "test/b/3", "test/b/4"):
        path = tmp_path / "images" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(int(place[-1])))
    shard_images(data(tmp_path / "images"), tmp_path / "out", Packing())
    shards, folder = opened(tmp_path / "out"), opened(tmp_path / "images")
    assert shards.test is not None
    assert folder.test is not None
    assert folder.test.labels.tolist() == [1, 1]
    assert_same_images(shards.train, folder.train)
    assert_same_images(shards.test, folder.test)
    assert open_source(data(tmp_path / "out" / "test"), 0).train.classes == ()


def test_the_number_of_images_in_a_shard_follows_their_size(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cjepa.runs.sharding.SHARD_BYTES", 12_000)
    [done] = shard_images(data(images), tmp_path / "out", Packing())
    assert 3 <= done.shards <= 7


@pytest.mark.parametrize("kind", ["MPO", "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_images_without_an_extension_are_packed(tmp_path: Path, kind: str) -> None:
    """An MPO is what telephones call JPEG: a second picture, of depth for instance, follows the first."""
    for name in ("one", "two"):
        picture = Image.new("RGB", (12, 16), (200, 0, 0))
        more = {"save_all": True, "append_images": [picture]} if kind == "MPO" else {}
        picture.save(tmp_path / name, kind, **more)
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    [done] = shard_images(data_of(str(tmp_path / "list.txt"), ()), tmp_path / "out", Packing())
    assert done.images == 2
    assert_same_images(open_source(data_of(str(tmp_path / "list.txt"), ()), 0).train, opened(tmp_path / "out").train)


# --- interruptions ----------------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.mark.parametrize("after", [0, 6, 13, 19])
def test_an_interrupted_call_goes_on_and_ends_the_same(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    packing = Packing(size=10, images_per_shard=6)
    shard_images(data(images), tmp_path / "whole", packing)
    read = shard_writing.encoded

    def stop(source: ImageSource, index: int) -> bytes:
        if index == after:
            raise StopError
        return read(source, index)

    monkeypatch.setattr(shard_writing, "encoded", stop)
    with pytest.raises(StopError):
        shard_images(data(images), tmp_path / "out", packing)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".tmp")]
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(finished) == after // 6
    with pytest.raises(InputError, match=r"holds no images|has no index"):
        opened(tmp_path / "out")
    read_again: list[int] = []
    monkeypatch.setattr(shard_writing, "encoded", lambda source, index: read_again.append(index) or read(source, index))
    shard_images(data(images), tmp_path / "out", packing)
    assert sorted(read_again) == list(range(after // 6 * 6, 20))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["shard", "part"])
def test_what_was_damaged_meanwhile_is_made_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    packing = Packing(images_per_shard=6)
    shard_images(data(images), tmp_path / "whole", packing)
    monkeypatch.setattr("cjepa.runs.sharding.Parts.remove", lambda self: None)
    shard_images(data(images), tmp_path / "out", packing)
    shutil.rmtree(tmp_path / "out" / "cjepa-index")
    path = tmp_path / "out" / ("shard-000001.tar" if damage == "shard" else ".cjepa-parts/shard-000001.tar.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    time.sleep(0.01)
    path.write_bytes(content)
    monkeypatch.undo()
    shard_images(data(images), tmp_path / "out", packing)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_kill_at_any_moment_costs_one_shard_at_most(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", count=70)
    out, whole = tmp_path / "out", tmp_path / "whole"
    shard_images(data(images), whole, Packing(size=12, images_per_shard=10))
    command = [sys.executable, "-m", "cjepa", "shard", str(images), str(out), "--size", "16"]
    command = [*command[:-1], "12", "--images-per-shard", "10"]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / "shard-000003.tar").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    shard_images(data(images), out, Packing(size=12, images_per_shard=10))
    assert tree(out) == tree(whole)


def test_a_full_disk_stops_and_is_resumable(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shard_writing, "sync_folder", full)
        with pytest.raises(StoppedEarly, match=r"out cannot be written: .*No space left.*the same command goes on"):
            shard_images(data(images), tmp_path / "out", Packing())
    shard_images(data(images), tmp_path / "out", Packing())
    assert len(opened(tmp_path / "out").train) == 20


def test_the_index_of_strangers_is_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cjepa.runs import sharding

    folder, seen, read = write_shards(tmp_path / "data"), list[str](), sharding.read_shard

    def counted(path: Path) -> object:
        if path.name == "part-0002.tar" and path.name not in seen:
            seen.append(path.name)
            raise StopError
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(sharding, "read_shard", counted)
    with pytest.raises(StopError):
        index_shards(folder, tmp_path / "index")
    index_shards(folder, tmp_path / "index")
    assert seen == ["part-0000.tar", "part-0001.tar", "part-0002.tar", "part-0002.tar"]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_other_settings_or_images_are_refused_with_the_difference(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard_images(data(images), out, Packing(size=10))
    before = tree(out)
    [again] = shard_images(data(images), out, Packing(size=10))
    assert again.images == 20
    with pytest.raises(InputError, match=r"begun with other settings or images:\n  size: 10 -> 12\n"):
        shard_images(data(images), out, Packing(size=12))
    (images / "a" / "more.png").write_bytes(picture(99))
    with pytest.raises(InputError, match=r"fingerprint: .*\n  images: 20 -> 21\n"):
        shard_images(data(images), out, Packing(size=10))
    assert tree(out) == before


def test_a_folder_of_something_else_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"is not empty \(it has 'images'\); choose a new"):
        shard_images(data(images), tmp_path, Packing())


@pytest.mark.usefixtures("without_locks")
def test_a_folder_without_locks_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its file system has no locks .*; choose a folder elsewhere"):
        shard_images(data(images), tmp_path / "out", Packing())


def test_a_folder_in_use_and_one_that_cannot_be(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(InputError, match="in use by another cjepa shard"):
        shard_images(data(images), tmp_path / "out", Packing())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file cannot be written: .*choose a folder"):
        shard_images(data(images), tmp_path / "file", Packing())


def test_an_image_that_cannot_be_read_stops(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = data(images), tmp_path / "out"
    listed = open_source(config, 0)
    monkeypatch.setattr("cjepa.runs.sharding.open_source", lambda *_, **__: listed)
    (images / "b" / "07.png").unlink()
    with pytest.raises(InputError, match=r"b/07\.png cannot be read .*No such file.*then run the same command"):
        shard_images(config, out, Packing(images_per_shard=5))


def test_folders_without_shards(tmp_path: Path, images: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        index_shards(tmp_path / "none", tmp_path)
    with pytest.raises(InputError, match=r"holds no \.tar files"):
        index_shards(images, images)
    (tmp_path / "t").mkdir()
    with tarfile.open(tmp_path / "t" / "x.tar", "w"):
        pass
    with pytest.raises(InputError, match="hold no images"):
        index_shards(tmp_path / "t", tmp_path / "t")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_packs_and_says_what_is_next(images: Path, tmp_path: Path) -> None:
    result = cjepa("shard", images, tmp_path / "out", "--size", 16, "--images-per-shard", 8, "--format", "png")
    assert result.exit_code == 0, result.output
    assert "shard out 20/20" in result.output
    assert f"{tmp_path / 'out'}: 20 images in 3 shards" in said(result)
    assert "1 images could not be decoded and are in the shards as they were" in said(result)
    assert f"next: cjepa pretrain PRESET data={tmp_path / 'out'}" in said(result)


def test_the_command_indexes(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data")
    result = cjepa("shard", "--index-only", folder, tmp_path / "index")
    assert result.exit_code == 0, result.output
    assert "files beside the images: 12 .cls" in said(result)
    assert f"data.source.path={folder} data.source.index={tmp_path / 'index'}" in said(result)
    result = cjepa("shard", "--index-only", folder)
    assert result.exit_code == 0, result.output
    assert f"PRESET data={folder}" in said(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("IMAGES",), "name the folder to write the shards into"),
        (("IMAGES", "OUT", "--format", "gif"), "--format gif: it is one of jpeg, png"),
        (("NONE", "OUT"), "NONE does not exist"),
        (("IMAGES", "OUT", "data.source.nme=list"), "did you mean data.source.name?"),
        (("IMAGES", "OUT", "data.max_pixels=0"), "data.max_pixels: must be greater than 0"),
        (("--index-only", "IMAGES"), "holds no .tar files"),
    ],
)
def test_the_command_refuses(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cjepa("shard", *(str(images) if each == "IMAGES" else each for each in arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert message in said(result)
    assert not (tmp_path / "OUT").exists()
