"""Parquet files of anybody: the images and labels that are declared, or a declared error."""

import json
import os
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cjepa.data import DataConfig, FolderConfig, ImageSource, UnreadableImageError, open_source
from cjepa.data import parquet as ours
from cjepa.data.parquet import ParquetConfig, ParquetSource, open_parquet
from cjepa.data.source import Splits
from cjepa.errors import InputError
from tests.data.packing import assert_threads_read, picture

IMAGE = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])


def hub_table(numbers: range, labels: list[int | None] | None = None, names: list[str] | None = None) -> arrow.Table:
    """As the data sets of the hub are: images as bytes and path, labels with names in the metadata."""
    images = [{"bytes": picture(number), "path": f"{number}.png"} for number in numbers]
    columns: dict[str, Any] = {"image": arrow.array(images, IMAGE)}
    if labels is not None:
        columns["label"] = arrow.array(labels, arrow.int64())
    table = arrow.table(columns)
    if names is None:
        return table
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, table: arrow.Table, rows: int = 4, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows, **options)
    return path


def opened(path: Path, **keys: Any) -> Splits:
    return open_parquet(ParquetConfig(path=path, **keys), 100_000)


def train(path: Path, **keys: Any) -> ParquetSource:
    source = opened(path, **keys).train
    assert isinstance(source, ParquetSource)
    return source


def test_images_labels_and_names(tmp_path: Path) -> None:
    labels = [number % 3 for number in range(10)]
    source = train(write(tmp_path / "x.parquet", hub_table(range(10), labels, ["cat", "dog", "owl", "unused"])))
    assert isinstance(source, ImageSource)
    assert source.names == [f"x.parquet:{number}" for number in range(10)]
    assert source.classes == ("cat", "dog", "owl", "unused")
    assert source.labels.tolist() == labels
    for number in (9, 0, 4, 3, 7):
        assert source.encoded(number) == picture(number)
        assert source.load(number).mode == "RGB"


def test_files_follow_each_other_by_name(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", hub_table(range(6, 9)))
    write(tmp_path / "a" / "z.parquet", hub_table(range(6)))
    write(tmp_path / ".cache" / "hidden.parquet", hub_table(range(2)))
    source = train(tmp_path)
    assert source.names[5:7] == ["a/z.parquet:5", "b.parquet:0"]
    assert [source.encoded(number) == picture(number) for number in range(9)] == [True] * 9
    assert source.labels.tolist() == [-1] * 9
    assert source.classes == ()


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By names that are the same wherever the folder lies, and so is the fingerprint; other names are other images."""
    fingerprints = []
    for place, folders in (("here", "ab"), ("there", "ab"), ("renamed", "ac")):
        for number, folder in enumerate(folders):
            write(tmp_path / place / folder / "0.parquet", hub_table(range(2 * number, 2 * number + 2)))
        source = train(tmp_path / place)
        assert source.names == [f"{folder}/0.parquet:{row}" for folder in folders for row in range(2)]
        fingerprints.append(source.fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize(
    "names", [("train-00000-of-00001", "test-00000-of-00001"), ("data/train/0", "data/test/0"), ("x.train", "x_val-1")]
)
def test_splits_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    if names[0] == "x.train":
        names = ("train.x", "validation_1")
    write(tmp_path / f"{names[0]}.parquet", hub_table(range(6), [5, 7, 5, 7, 5, None]))
    write(tmp_path / f"{names[1]}.parquet", hub_table(range(6, 8), [9, 7]))
    write(tmp_path / "extra.parquet", hub_table(range(3)))
    splits = opened(tmp_path)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (6, 2)
    assert splits.train.classes == splits.test.classes == ("5", "7", "9")
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 0, -1]
    assert splits.test.labels.tolist() == [2, 1]


def test_plain_bytes_and_labels_of_text(tmp_path: Path) -> None:
    table = arrow.table(
        {
            "payload": arrow.array([picture(number) for number in range(3)], arrow.large_binary()),
            "kind": ["b", None, "a"],
        }
    )
    source = train(write(tmp_path / "x.parquet", table), label_column="kind")
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [1, -1, 0]
    assert source.encoded(2) == picture(2)


def test_categories_of_text_are_labels(tmp_path: Path) -> None:
    """As pandas and polars write them."""
    table = hub_table(range(4)).append_column("label", arrow.array(["b", None, "a", "b"]).dictionary_encode())
    source = train(write(tmp_path / "x.parquet", table))
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [1, -1, 0, 1]


def test_a_split_of_one_class_keeps_its_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", hub_table(range(3), [3, 7, 3]))
    write(tmp_path / "test.parquet", hub_table(range(3, 5), [7, 7]))
    splits = opened(tmp_path)
    assert splits.test is not None
    assert splits.test.classes == ("3", "7")
    assert splits.test.labels.tolist() == [1, 1]
    alone = opened(tmp_path / "test.parquet").train
    assert (alone.classes, alone.labels.tolist()) == ((), [-1, -1])


def test_files_that_are_left_out_or_missing_are_named(tmp_path: Path) -> None:
    for name in ("train-00000-of-00003", "train-00002-of-00003", "test-00000-of-00001-5f2c", "unsupervised-0"):
        write(tmp_path / "data" / f"{name}.parquet", hub_table(range(2)))
    notes = opened(tmp_path).notes
    assert notes[1:] == (
        f"{tmp_path}: ignored beside train-00000-of-00003.parquet and test-00000-of-00001-5f2c.parquet: "
        "data/unsupervised-0.parquet",
        f"{tmp_path / 'data'}: only 2 of the 3 files train-NNNNN-of-00003 are here; the images of the others are "
        "missing",
    )
    assert opened(tmp_path / "data" / "train-00000-of-00003.parquet").notes == ()


def test_images_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    (tmp_path / "data" / "pictures" / "a.png").write_bytes(picture(1))
    (tmp_path / "secret.png").write_bytes(picture(2))
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    names = [
        "pictures/a.png",
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "gone.png",
        "pictures",
        "a\0b",
    ]
    images = [{"bytes": None, "path": name} for name in names]
    source = train(write(tmp_path / "data" / "x.parquet", arrow.table({"image": arrow.array(images, IMAGE)})))
    assert source.encoded(0) == picture(1)
    reasons = [_reason(source, number) for number in range(1, 7)]
    assert ["outside of" in reason for reason in reasons] == [True, True, True, False, False, False]
    assert reasons[3:5] == ["the row names a file that does not exist"] * 2


def _reason(source: ParquetSource, number: int) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        source.encoded(number)
    return str(caught.value)


def test_rows_without_an_image_are_unreadable(tmp_path: Path) -> None:
    images = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}, {"bytes": picture(0), "path": None}]
    source = train(write(tmp_path / "x.parquet", arrow.table({"image": arrow.array(images, IMAGE)})))
    assert [_reason(source, number) for number in range(3)] == ["the row has no image"] * 3
    assert source.encoded(3) == picture(0)


def test_a_bare_path_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", hub_table(range(3)))
    assert isinstance(open_source(DataConfig(source=FolderConfig(path=path)), 0).train, ParquetSource)


def test_row_groups_are_kept_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = train(write(tmp_path / "x.parquet", hub_table(range(12)), rows=3))
    read, groups = source._read, []
    monkeypatch.setattr(source, "_read", lambda group: groups.append(group.number) or read(group))
    for number in (0, 11, 2, 10, 1):
        source.encoded(number)
    assert groups == [0, 3]
    monkeypatch.setattr(ours, "CACHE_BYTES", 10)
    for number in (4, 5, 0):
        assert source.encoded(number) == picture(number)
    assert groups == [0, 3, 1, 0]
    assert len(source._cache) == 1


def test_a_copy_in_another_process_reads_for_itself(tmp_path: Path) -> None:
    source = train(write(tmp_path / "x.parquet", hub_table(range(12))))
    source.load(0)
    frozen = pickle.dumps(source)
    assert len(frozen) < 3000
    assert pickle.loads(frozen).encoded(7) == picture(7)


def test_threads_share_the_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = train(write(tmp_path / "x.parquet", hub_table(range(4)), rows=2))
    monkeypatch.setattr(ours, "CACHE_BYTES", 10)
    monkeypatch.setattr(source, "_cache", _Slow())
    assert_threads_read(source, [picture(number) for number in range(4)], 50)


class _Slow(OrderedDict[int, Any]):
    """Others have the time to change it between two uses."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        time.sleep(1e-4)
        return found


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "keys", "message"),
    [
        ({"a": [1]}, {}, r"has 0 columns that could hold images; .*image_column \(it has a: int64\)"),
        ({"a": [b"x"], "b": [b"x"]}, {}, "has 2 columns that could hold images"),
        ({"a": [b"x"]}, {"image_column": "b"}, "image_column: b: there is none of that name"),
        ({"a": [b"x"], "b": [1]}, {"image_column": "b"}, "image_column: b: it does not hold encoded images"),
        ({"a": [b"x"]}, {"label_column": "b"}, "label_column: b is not in"),
        ({"a": [b"x"], "b": [1.5]}, {"label_column": "b"}, "label_column: b holds double; labels are whole numbers"),
        ({"a": arrow.array([], arrow.binary())}, {}, "holds no images, only files without rows"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, table: dict[str, Any], keys: dict[str, str], message: str) -> None:
    path = write(tmp_path / "x.parquet", arrow.table(table))
    with pytest.raises(InputError, match=message):
        opened(path, **keys)


def test_files_that_differ_from_each_other(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", hub_table(range(3)))
    write(tmp_path / "b.parquet", arrow.table({"image": [b"x", b"y"]}))
    with pytest.raises(InputError, match=r"b\.parquet: its column image is not like that of the first file"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "its column label is not like that of the first file; separate them"),
        (arrow.array(["0", "1", "0"]), "its column label is not like that of the first file"),
        ((["dog", "cat"],), "the numbers in its column label stand for other classes than in the first file"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_labels_that_differ_between_files(tmp_path: Path, labels: Any, message: str, swapped: bool) -> None:
    first = hub_table(range(3), [0, 1, 0], ["cat", "dog"])
    second = hub_table(range(3))
    if isinstance(labels, tuple):
        second = hub_table(range(3), [0, 1, 0], *labels)
    elif labels is not None:
        second = second.append_column("label", labels)
    elif swapped:
        return  # the column is not looked for where the first file has none
    for name, table in zip("ba" if swapped else "ab", (first, second), strict=True):
        write(tmp_path / f"{name}.parquet", table)
    with pytest.raises(InputError, match=rf"b\.parquet: {message}"):
        opened(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text" * 100, b"PAR1" + b"\xff" * 100 + b"PAR1"])
def test_what_is_no_parquet_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet cannot be read: .*; get it again, or remove it"):
        opened(tmp_path)


def test_places_without_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        opened(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no \.parquet files"):
        opened(tmp_path)


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'pip install "cjepa\[parquet\]"'):
        opened(write_nothing(tmp_path))


def write_nothing(folder: Path) -> Path:
    (folder / "x.parquet").write_bytes(b"PAR1")
    return folder / "x.parquet"


def test_a_row_group_of_gigabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary makes one image many: 80 times 1 MB in a file of 1 MB."""
    monkeypatch.setattr(ours, "LARGEST_GROUP", 70 << 20)
    table = arrow.table({"image": arrow.array([os.urandom(1 << 20)] * 80, arrow.binary())})
    path = write(tmp_path / "x.parquet", table, rows=80)
    assert path.stat().st_size < 3 << 20
    assert "its row group has more than 73,400,320 bytes" in _reason(train(path), 0)


def test_other_columns_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload beside the images stays what it is, and no other column is asked for."""
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {marker}",)

    table = hub_table(range(4)).append_column("pkl", [[pickle.dumps(Payload())] * 4])
    table = table.replace_schema_metadata({b"pandas": b"{", b"huggingface": b"!!python/object"})
    path = write(tmp_path / "x.parquet", table)
    asked, iterate = [], parquet.ParquetFile.iter_batches

    def seen(self: object, *arguments: Any, columns: list[str], **options: Any) -> Any:
        asked.extend(columns)
        return iterate(self, *arguments, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", seen)
    source = train(path)
    assert [source.encoded(number) == picture(number) for number in range(4)] == [True] * 4
    assert set(asked) == {"image"}
    assert not marker.exists()


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_file_that_changes_stops_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", hub_table(range(8)))
    source = train(path)
    source.encoded(0)
    write(path, hub_table(range(1, 9)))
    assert source.encoded(0) == picture(0)
    with pytest.raises(InputError, match=r"x\.parquet has changed since the run began"):
        source.encoded(7)
    path.unlink()
    with pytest.raises(InputError, match=r"x\.parquet cannot be read: .*No such file"):
        source.encoded(7)


def test_pages_with_checksums_show_a_flipped_bit(tmp_path: Path) -> None:
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True, "write_statistics": False}
    path = write(tmp_path / "x.parquet", hub_table(range(8)), **options)
    source, content = train(path), bytearray(path.read_bytes())
    content[content.index(picture(5)) + 50] ^= 1
    path.write_bytes(content)
    assert source.encoded(1) == picture(1)
    assert "its row group is damaged" in _reason(source, 5)


def test_fingerprints_differ_with_the_images(tmp_path: Path) -> None:
    tables = [hub_table(range(4)), hub_table(range(1, 5)), hub_table(range(5)), hub_table(range(4), [0, 1, 0, 1])]
    prints = {
        train(write(tmp_path / str(number) / "x.parquet", table)).fingerprint for number, table in enumerate(tables)
    }
    assert len(prints) == 4
    assert train(write(tmp_path / "again" / "x.parquet", tables[0])).fingerprint in prints


@pytest.mark.parametrize(
    "features",
    [
        *(b"", b"null", b"[]", b'{"info": 3}', b"[" * 9999),
        b'{"info": {"features": {"label": {"names": [1, 2, 3]}}}}',
        b'{"info": {"features": {"label": {"names": ["a", "a", "b"]}}}}',
        b'{"info": {"features": {"label": {"names": ["one"]}}}}',
    ],
)
def test_odd_metadata_name_no_classes(tmp_path: Path, features: bytes) -> None:
    table = hub_table(range(3), [2, 0, 2]).replace_schema_metadata({b"huggingface": features})
    source = train(write(tmp_path / "x.parquet", table))
    assert source.classes == ("0", "2")
    assert source.labels.tolist() == [1, 0, 1]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("good")
    path = write(folder / "x.parquet", hub_table(range(6), [0, 1, 0, 1, 0, 1], ["a", "b"]), rows=3)
    return path, path.read_bytes()


_BYTES = st.binary(min_size=1, max_size=12)
_PLACES = st.one_of(st.integers(0, 10**6), st.integers(-1200, -1))
"""Anywhere, or near the end, where the footer is; taken modulo the length."""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(end=st.one_of(st.just(-1), st.integers(0, 10**6)), edits=st.lists(st.tuples(_PLACES, _BYTES), max_size=3))
def test_any_mutation_gives_declared_errors_only(
    good: tuple[Path, bytes], end: int, edits: list[tuple[int, bytes]]
) -> None:
    path, content = good
    changed = bytearray(content[: end % (len(content) + 1)])
    for place, new in edits:
        position = place % (len(content) + 1)
        changed[position : position + len(new)] = new
    path.write_bytes(changed)
    try:
        source = train(path)
        assert len(source.labels) == len(source)
        for number in range(min(len(source), 6)):
            try:
                np.asarray(source.load(number))
            except UnreadableImageError:
                continue
    except InputError:
        pass
