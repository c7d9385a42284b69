import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cjepa.data.decoding import UnreadableImageError
from cjepa.data.folder import FolderConfig, lies_among_images, open_folder
from cjepa.data.source import ImageSource, Splits
from cjepa.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"


def fill(root: Path, *names: str) -> Path:
    """Files of different sizes; listing does not read them."""
    for size, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG + b"x" * size)
    return root


def opened(root: Path) -> Splits:
    return open_folder(FolderConfig(path=root), 1_000_000)


@pytest.mark.parametrize(
    ("names", "place", "among"),
    [
        (("a/1.png", "b/2.png"), "runs/mine", True),
        (("a/1.png", "b/2.png"), "a", True),
        (("a/1.png", "b/2.png"), ".runs/mine", False),
        (("a/1.png", "b/2.png"), "../runs", False),
        (("train/1.png", "test/2.png"), "runs/mine", False),
        (("train/1.png", "test/2.png"), "test/runs", True),
    ],
)
def test_what_lies_among_the_images(names: tuple[str, ...], place: str, among: bool, tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", *names)
    assert lies_among_images(FolderConfig(path=root), root / place) is among


def test_nested_folders_are_labelled_by_the_first_level(tmp_path: Path) -> None:
    source = opened(fill(tmp_path, "b/deep/er/1.png", "a/2.JPG", "b/3.jpeg", "4.webp", "a/notes.txt")).train
    assert source.names == ["4.webp", "a/2.JPG", "b/3.jpeg", "b/deep/er/1.png"]
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [-1, 0, 1, 1]
    assert isinstance(source, ImageSource)


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("all/1.png", "all/2.png"), ("all/1.png", "2.png")])
def test_no_folder_or_one_names_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = opened(fill(tmp_path, *names)).train
    assert source.classes == ()
    assert source.labels.tolist() == [-1, -1]


def test_load_decodes_and_reports_damage(tmp_path: Path) -> None:
    fill(tmp_path, "bad.png")
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "good.png")
    source = opened(tmp_path).train
    assert source.load(1).getpixel((4, 3)) == (1, 2, 3)
    with pytest.raises(UnreadableImageError):
        source.load(0)


def test_max_pixels_reaches_the_decoder(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (10, 10)).save(tmp_path / f"{name}.png")
    with pytest.raises(UnreadableImageError, match="max_pixels=99"):
        open_folder(FolderConfig(path=tmp_path), 99).train.load(0)


@pytest.mark.parametrize(
    ("folders", "used"),
    [
        (["train", "test"], "test"),
        (["train", "val"], "val"),
        (["Train", "validation"], "validation"),
        (["train", "val", "test", "validation"], "test"),
    ],
)
def test_splits(tmp_path: Path, folders: list[str], used: str) -> None:
    for folder in folders:
        fill(tmp_path / folder, "cat/1.png", "dog/2.png", f"cat/{folder}.png")
    splits = opened(tmp_path)
    assert splits.test is not None
    assert f"cat/{folders[0]}.png" in splits.train.names
    assert f"cat/{used}.png" in splits.test.names
    assert len(splits.train) == len(splits.test) == 3
    ignored = sorted(set(folders) - {folders[0], used})
    assert [note for note in splits.notes if "ignored" in note] == (
        [f"{tmp_path}: ignored beside {folders[0]} and {used}: {', '.join(ignored)}"] if ignored else []
    )


def test_classes_are_numbered_alike_in_both_splits(tmp_path: Path) -> None:
    fill(tmp_path, "train/b/1.png", "train/c/2.png", "test/a/3.png", "test/c/4.png")
    splits = opened(tmp_path)
    assert splits.test is not None
    assert splits.train.classes == splits.test.classes == ("a", "b", "c")
    assert splits.train.labels.tolist() == [1, 2]
    assert splits.test.labels.tolist() == [0, 2]


@pytest.mark.parametrize("folders", [["train"], ["test", "val"], ["training", "test"]])
def test_one_split_alone_is_a_class_like_any_other(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        fill(tmp_path / folder, "1.png", "2.png")
    splits = opened(tmp_path)
    assert splits.test is None
    assert len(splits.train) == 2 * len(folders)


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{folder}/{index}.png" for folder in "dacb" for index in (10, 9, 2, 1)]
    whole = opened(fill(tmp_path, *names)).train
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    again = opened(tmp_path).train
    assert again.names == whole.names == sorted(names)
    assert again.fingerprint == whole.fingerprint


def test_fingerprint_changes_with_names_and_sizes_not_with_the_place(tmp_path: Path) -> None:
    first = opened(fill(tmp_path / "one", "a.png", "b.png")).train.fingerprint
    assert opened(fill(tmp_path / "two", "a.png", "b.png")).train.fingerprint == first
    assert opened(fill(tmp_path / "three", "a.png", "c.png")).train.fingerprint != first
    (tmp_path / "one" / "a.png").write_bytes(PNG + b"longer")
    assert opened(tmp_path / "one").train.fingerprint != first


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "3.png")
    root = fill(tmp_path / "root", "a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to(root)
    (root / "c").symlink_to(outside)
    (root / "b" / "self.png").symlink_to(root / "b" / "self.png")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "b" / "link.png").symlink_to(outside / "3.png")
    assert opened(root).train.names == ["a/1.png", "b/2.png", "b/link.png", "c/3.png"]


def test_what_only_looks_like_an_image_is_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png", "._1.png", ".cache/3.png", "__MACOSX/a/4.png", "@eaDir/1.png/THUMB.jpg")
    fill(tmp_path, "$RECYCLE.BIN/S-1/5.png", "lost+found/6.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert opened(tmp_path).train.names == ["1.png", "2.png"]


def test_what_may_have_been_meant_is_said(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/a/2.png", "train/a/3.HEIC", "train/b.tar", "train/x.txt", "test/a/4.png")
    assert opened(tmp_path).notes[1:] == (
        f"{tmp_path / 'train'}: left out, since such files are not read: 1 .heic, 1 .tar; convert or unpack them first",
    )
    assert opened(tmp_path / "train").notes == opened(tmp_path).notes[1:]


def test_names_that_are_not_utf8_can_be_read_and_printed(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(raw, "wb") as file:  # noqa: PTH123  Path takes no bytes
            Image.new("RGB", (2, 2), (7, 7, 7)).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    fill(tmp_path, "z.png")
    source = opened(tmp_path).train
    assert source.names == ["caf\\xe9.png", "z.png"]
    source.names[0].encode()
    assert source.load(0).getpixel((0, 0)) == (7, 7, 7)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(
        st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(
            lambda name: not name.startswith(".") and name != "__MACOSX"
        ),
        min_size=2,
        max_size=6,
    )
)
def test_any_name(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    root = tmp_path_factory.mktemp("names")
    fill(root, *(f"{name}.png" for name in names))
    assert opened(root).train.names == sorted(f"{name}.png" for name in names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"holds no images \(it is empty\); give a folder of \.jpg"),
        (["a.txt", "b.txt", "c.pdf"], r"holds no images \(3 files: \.txt \.pdf\)"),
        (["README"], r"holds no images \(1 file: no extension\)"),
        (["a.tar", "b.tar"], r"\(2 files: \.tar\); .*; tar shards need an index: cjepa shard --index-only FOLDER"),
        (["data/a.parquet"], r"; Parquet files are read with data\.source\.name=parquet data\.source\.path=FOLDER"),
        (["train/1.png", "train/2.png", "test/a.txt"], r"test holds no images \(1 file: \.txt\)"),
    ],
)
def test_folders_without_enough_images(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(fill(tmp_path, *names))


def test_paths_that_are_no_folders(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"a\.png is a file; give the folder"):
        opened(tmp_path / "a.png")
    with pytest.raises(InputError, match="missing does not exist"):
        opened(tmp_path / "missing")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that goes missing without a word would be worse than a refusal."""
    root = fill(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot list .*b: Permission denied; make it readable"):
        opened(root)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "1.png", "2.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(opened(Path("~")).train) == 2


def test_many_files_are_listed_quickly(tmp_path: Path) -> None:
    for folder in range(20):
        (tmp_path / f"{folder:02d}").mkdir()
        for index in range(100):
            os.close(os.open(f"{tmp_path}/{folder:02d}/{index:04d}.png", os.O_CREAT))
    start = time.process_time()
    source = opened(tmp_path).train
    assert len(source) == 2000
    assert time.process_time() - start < 5  # 10^5 take 2 s
    assert np.bincount(source.labels).tolist() == [100] * 20
