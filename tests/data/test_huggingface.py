"""Data sets by id come out of the cache of huggingface_hub, laid out here as that library lays it out."""

from pathlib import Path

import pytest

from cjepa.config.presets import resolve
from cjepa.data import DataConfig, HuggingFaceConfig, ParquetSource, open_source
from cjepa.data.huggingface import open_huggingface
from cjepa.errors import InputError
from tests.data.packing import picture
from tests.data.test_parquet import hub_table, write

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two splits in a subset, as links from the snapshot to blobs."""
    repository = tmp_path / "datasets--somebody--birds"
    snapshot = repository / "snapshots" / COMMIT / "plain"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name, numbers in (("train", range(6)), ("test", range(6, 9))):
        blob = write(
            repository / "blobs" / name, hub_table(numbers, [number % 2 for number in numbers], ["jay", "owl"])
        )
        (snapshot / f"{name}-00000-of-00001.parquet").symlink_to(blob)
    return tmp_path


def test_a_data_set_in_the_cache(cache: Path) -> None:
    splits = open_source(DataConfig(source=HuggingFaceConfig(id="somebody/birds", path=cache)), 0)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (6, 3)
    assert splits.train.classes == ("jay", "owl")
    assert splits.test.labels.tolist() == [0, 1, 0]
    assert isinstance(splits.test, ParquetSource)
    assert splits.test.encoded(2) == picture(8)
    again = open_huggingface(HuggingFaceConfig(id="somebody/birds", path=cache, subset="plain/"), 10_000)
    assert again.train.fingerprint == splits.train.fingerprint
    assert again.train.names[5] == splits.train.names[5] == "plain/train-00000-of-00001.parquet:5"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"id": "somebody/fish"}, r"somebody/fish cannot be had: .*; it is looked for in the cache .* only"),
        ({"id": "somebody/birds", "revision": "v2"}, "cannot be had"),
        ({"id": "../../etc"}, "cannot be had"),
        ({"id": "https://example.org/x"}, "cannot be had"),
        ({"id": "somebody/birds", "subset": "../.."}, "is no folder of the data set"),
        ({"id": "somebody/birds", "subset": "other"}, "does not exist"),
    ],
)
def test_what_is_not_there_is_refused(cache: Path, keys: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_huggingface(HuggingFaceConfig(path=cache, **keys), 10_000)


def test_the_cache_that_was_looked_in_is_named(cache: Path) -> None:
    """A preset's folder of images becomes the cache where data.source.name chooses the source."""
    source = resolve("small-96", ["data.source.name=huggingface", "data.source.id=somebody/birds"]).data.source
    assert isinstance(source, HuggingFaceConfig)
    with pytest.raises(InputError, match="it is looked for in the cache data/images only"):
        open_huggingface(source, 10_000)
    plain = resolve("small-96", ["data.source=huggingface", "data.source.id=somebody/birds"]).data.source
    assert plain == HuggingFaceConfig(id="somebody/birds")


def test_without_the_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"run: pip install huggingface_hub, or name the files"):
        open_huggingface(HuggingFaceConfig(id="somebody/birds", path=cache), 10_000)
