"""`cjepa embed`: rows, order, formats, unreadable images, and going on after a kill."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from cjepa.build import load_encoder
from cjepa.cli import app
from cjepa.data import DataConfig, EvaluationImages, FolderConfig, open_source
from cjepa.data.source import Joined
from cjepa.embedding import Column, RowStore
from cjepa.errors import DivergedError, InputError, StoppedEarly, StorageError
from cjepa.models.weights.folder import write_folder
from cjepa.runs import EmbeddingJob, embed_images, embedding
from cjepa.runs.labelled_images import open_labelled
from cjepa.types import Unreadable
from tests.encoders import pretrained
from tests.tiny_runs import write_images


def cjepa(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    encoder = pretrained(size=(16, 16))
    write_folder(folder, encoder.encoder.config, encoder.preparation, encoder.encoder.state_dict())
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """49 images, the one at row 10 unreadable."""
    folder = write_images(tmp_path_factory.mktemp("images"))
    (folder / "a" / "0009b.png").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def expected(weights: Path, images: Path) -> torch.Tensor:
    """Patch embeddings of the readable images, one image at a time."""
    source = open_source(DataConfig(source=FolderConfig(path=images), image_size=16), 0).train
    crops = EvaluationImages(source, DataConfig(source=FolderConfig(path=images), image_size=16))
    encoder = load_encoder(weights)
    return torch.cat([encoder(crops[index][None]) for index in range(len(crops)) if index != 10])


READABLE = [row for row in range(49) if row != 10]


def test_rows_are_the_images_in_order(weights: Path, images: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    result = cjepa("embed", weights, images, "--out", tmp_path / "e.npy", "--batch-size", 7)
    assert result.exit_code == 0, result.output
    assert "49 images," in result.output
    assert "images/s" in result.output
    assert "1 could not be read" in result.output
    found = np.load(tmp_path / "e.npy")
    assert found.shape == (49, 48)
    np.testing.assert_allclose(found[READABLE], expected.mean(1), atol=1e-5)
    assert np.isnan(found[10]).all()
    names = [json.loads(line) for line in (tmp_path / "e.names.jsonl").read_text().splitlines()]
    assert names == sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    [bad] = [json.loads(line) for line in (tmp_path / "e.unreadable.jsonl").read_text().splitlines()]
    assert (bad["row"], bad["name"]) == (10, "a/0009b.png")
    assert "not one of" in bad["reason"]
    assert {path.name for path in tmp_path.iterdir()} == {"e.npy", "e.names.jsonl", "e.unreadable.jsonl"}


def test_both_kinds_in_every_format(weights: Path, images: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    job = EmbeddingJob("both", batch_size=16)
    for suffix in ("npy", "safetensors"):
        embed_images(weights, images, tmp_path / f"e.{suffix}", job, device="cpu")
    arrays = load_file(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), arrays["pooled"].numpy())
    np.testing.assert_array_equal(np.load(tmp_path / "e.patches.npy"), arrays["patches"].numpy())
    assert arrays["patches"].shape == (49, 16, 48)
    torch.testing.assert_close(arrays["patches"][READABLE], expected, atol=1e-5, rtol=1e-5)


def test_parquet_has_paths_and_nulls(
    weights: Path, images: Path, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    monkeypatch.setattr("cjepa.embedding.parquet._GROUP_BYTES", 20_000)
    embed_images(weights, images, tmp_path / "e.parquet", EmbeddingJob("both"), device="cpu")
    table = parquet.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["path", "pooled", "patches"]
    assert parquet.ParquetFile(tmp_path / "e.parquet").num_row_groups > 3
    rows = table.to_pylist()
    assert rows[10]["path"] == "a/0009b.png"
    assert rows[10]["pooled"] is None
    assert rows[10]["patches"] is None
    kept = [row for row in rows if row["pooled"] is not None]
    np.testing.assert_allclose([row["patches"] for row in kept], expected, atol=1e-5)
    np.testing.assert_allclose([row["pooled"] for row in kept], expected.mean(1), atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_size_and_number_of_workers(weights: Path, images: Path, tmp_path: Path, workers: int) -> None:
    job = EmbeddingJob("patches", (8, 24), 10)
    embed_images(weights, images, tmp_path / "e.npy", job, device="cpu", workers=workers)
    found = np.load(tmp_path / "e.npy")
    assert found.shape == (49, 12, 48)
    source = open_source(DataConfig(source=FolderConfig(path=images), image_size=16), 0).train
    crops = EvaluationImages(source, DataConfig(source=FolderConfig(path=images), image_size=(8, 24)))
    np.testing.assert_allclose(found[3], load_encoder(weights)(crops[3][None])[0], atol=1e-5)


def test_half_precision(weights: Path, images: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    embed_images(weights, images, tmp_path / "e.npy", EmbeddingJob(precision="bfloat16"), device="cpu")
    found = np.load(tmp_path / "e.npy")[READABLE]
    assert found.dtype == np.float32
    difference = np.abs(found - expected.mean(1).numpy()).max()
    assert 0 < difference < 0.1


def test_one_image_is_enough(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "one", ("",), 1)
    result = cjepa("embed", weights, tmp_path / "one", "--out", tmp_path / "e.npy")
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "e.npy").shape == (1, 48)


def test_splits_are_embedded_one_after_the_other(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train", count=4)
    write_images(tmp_path / "data" / "test", count=3, seed=1)
    embed_images(weights, tmp_path / "data", tmp_path / "e.npy", device="cpu")
    names = [json.loads(line) for line in (tmp_path / "e.names.jsonl").read_text().splitlines()]
    assert names[0].startswith("train/a/")
    assert names[-1].startswith("test/c/")
    assert len(np.load(tmp_path / "e.npy")) == len(names) == 21


@pytest.mark.parametrize("name", ["demo", "shards", "2024"])
def test_a_folder_with_the_name_of_a_source_is_that_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_images(tmp_path / name, count=2)
    monkeypatch.chdir(tmp_path)
    result = cjepa("embed", weights, name, "--out", "e.npy", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert len(np.load("e.npy")) == 6


def test_lists_and_shards_are_embedded_like_the_folder(weights: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    names = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "images").rglob("*.png"))
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    assert cjepa("shard", images, tmp_path / "shards", "--images-per-shard", 20).exit_code == 0
    for source in ("images", "list.txt", "shards"):
        result = cjepa("embed", weights, tmp_path / source, "--device", "cpu", "--out", tmp_path / f"{source}.npy")
        assert result.exit_code == 0, result.output
        assert "1 could not be read" in result.output
    first, *others = (np.load(tmp_path / f"{source}.npy") for source in ("images", "list.txt", "shards"))
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_a_joined_source_reads_every_part(tmp_path: Path) -> None:
    parts = {
        name: open_source(
            DataConfig(source=FolderConfig(path=write_images(tmp_path / name, count=2, seed=seed))), 0
        ).train
        for seed, name in enumerate(("one", "two"))
    }
    joined = Joined(parts)
    assert len(joined) == 12
    assert joined.load(7).tobytes() == parts["two"].load(1).tobytes()
    assert joined.fingerprint != Joined({"one": parts["one"]}).fingerprint


# --- going on -------------------------------------------------------------------------------------------------------


def test_it_goes_on_after_a_kill_with_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", count=60)
    (images / "a" / "0007b.png").write_bytes(b"nothing")
    command = [sys.executable, "-m", "cjepa", "embed", weights, images, "--batch-size", 4, "--device", "cpu", "--out"]
    slow = (
        "import cjepa.data.every_image as every, time\n"
        "crop = every.centre_crop\n"
        "every.centre_crop = lambda *given: (time.sleep(0.02), crop(*given))[1]\n"
        "import cjepa.runs.embedding as embedding\n"
        "embedding.SYNC_SECONDS = 0.2\n"
        "import sys\nfrom cjepa.cli import main\nsys.argv = sys.argv[1:]\nmain()\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    part = tmp_path / ".killed.npy.part"
    arguments = [str(each) for each in [*command[3:], tmp_path / "killed.npy"]]
    process = subprocess.Popen([sys.executable, "-c", slow, "cjepa", *arguments], env=environment)
    deadline = time.monotonic() + 120
    while not ((part / "done.json").exists() and json.loads((part / "done.json").read_text()) >= 24):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.npy").exists()
    done = json.loads((part / "done.json").read_text())
    assert 0 < done < 181
    resumed = embed_images(weights, images, tmp_path / "killed.npy", EmbeddingJob(batch_size=4), device="cpu")
    assert resumed.computed == 181 - done
    whole = embed_images(weights, images, tmp_path / "whole.npy", EmbeddingJob(batch_size=4), device="cpu")
    assert (whole.unreadable, resumed.unreadable) == (1, 1)
    for suffix in ("npy", "names.jsonl", "unreadable.jsonl"):
        assert (tmp_path / f"killed.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not part.exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cjepa.runs import embedding

    original, calls = embedding._begin, []

    def interrupting(*given: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding, "_begin", interrupting)
    job = EmbeddingJob(batch_size=8)
    with pytest.raises(StoppedEarly, match="stopped by SIGINT after image 24 of 49; the same command goes on"):
        embed_images(weights, images, tmp_path / "e.npy", job, device="cpu")
    with pytest.raises(InputError, match=r"with other options \(they differ in: features\)"):
        embed_images(weights, images, tmp_path / "e.npy", EmbeddingJob("patches", batch_size=8), device="cpu")
    assert embed_images(weights, images, tmp_path / "e.npy", job, device="cpu").computed == 25


@pytest.mark.parametrize(("good", "rest"), [(0, 49), (2, None)])
def test_without_memory_it_says_what_to_lower(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int, rest: int | None
) -> None:
    """A smaller batch begins at once where no row was kept; kept ones are never thrown away unasked."""
    from cjepa.runs import embedding

    original, calls = embedding._begin, []

    def fail(*given: object) -> object:
        calls.append(1)
        if len(calls) > good:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0")
        return original(*given)  # type: ignore[arg-type]

    command = ("embed", weights, images, "--out", tmp_path / "e.npy", "--device", "cpu", "--batch-size")
    monkeypatch.setattr(embedding, "_begin", fail)
    monkeypatch.setattr(embedding, "SYNC_SECONDS", -1.0)
    result = cjepa(*command, 8)
    assert result.exit_code == 2, result.output
    assert "out of memory (20.00 GiB could not be had); lower --batch-size" in " ".join(result.output.split())
    monkeypatch.setattr(embedding, "_begin", original)
    smaller = EmbeddingJob(batch_size=4)
    if rest is None:
        with pytest.raises(InputError, match=r"with other options \(they differ in: batch_size\)"):
            embed_images(weights, images, tmp_path / "e.npy", smaller, device="cpu")
    else:
        assert embed_images(weights, images, tmp_path / "e.npy", smaller, device="cpu").computed == rest


def test_a_part_of_other_weights_or_images_is_begun_anew(
    weights: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, part, job = tmp_path / "e.npy", tmp_path / ".e.npy.part", EmbeddingJob(batch_size=16)
    embed_images(weights, images, tmp_path / "whole.npy", job, device="cpu")
    for content in ({"weights": "another"}, {"fingerprint": "another", "features": "both"}, {"preparation": {}}, None):
        with pytest.MonkeyPatch.context() as patch:
            _stop_at_the_first_batch(patch)
            with pytest.raises(StoppedEarly):
                embed_images(weights, images, out, job, device="cpu")
        assert json.loads((part / "done.json").read_text()) == 16
        described = json.loads((part / "job.json").read_text())
        (part / "job.json").write_text("{" if content is None else json.dumps(described | content))
        found = embed_images(weights, images, out, job, device="cpu")
        assert (found.computed, found.unreadable) == (49, 1)
        assert "beginning anew" in caplog.text
        assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()
        assert not part.exists()
        out.unlink()
        caplog.clear()


def test_a_full_disk_at_the_end_costs_no_row_and_adds_none(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, job = tmp_path / "e.npy", EmbeddingJob(batch_size=16)  # 49 images: the last batch is not full
    embed_images(weights, images, tmp_path / "whole.npy", job, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("cjepa.runs.embedding.write", _full_disk)
        result = cjepa("embed", weights, images, "--device", "cpu", "--batch-size", 16, "--out", out)
    assert result.exit_code == 75, result.output
    assert "No space left on device" in " ".join(result.output.split())
    assert "the same command goes on" in " ".join(result.output.split())
    assert not out.exists()
    assert embed_images(weights, images, out, job, device="cpu", workers=1).computed == 0
    for suffix in ("npy", "names.jsonl", "unreadable.jsonl"):
        assert (tmp_path / f"e.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


def test_a_full_disk_on_the_way_costs_what_was_not_synced(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, job = tmp_path / "e.npy", EmbeddingJob(batch_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "sync", _full_disk)
        with pytest.raises(StorageError, match="cannot be written"):
            embed_images(weights, images, out, job, device="cpu")
    assert embed_images(weights, images, out, job, device="cpu").computed == 49


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_written_is_refused(weights: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="choose a folder that you may write to"):
        embed_images(weights, images, tmp_path / "file" / "e.npy", device="cpu")


def _stop_at_the_first_batch(patch: pytest.MonkeyPatch) -> None:
    from cjepa.runs import embedding

    original = embedding._begin

    def interrupting(*given: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return original(*given)  # type: ignore[arg-type]

    patch.setattr(embedding, "_begin", interrupting)


def test_a_store_forgets_what_was_not_synced(tmp_path: Path) -> None:
    columns, names = [Column("pooled", (3,))], [f"{index}" for index in range(6)]
    store = RowStore(tmp_path, columns, names)
    store.append({"pooled": np.ones((2, 3), np.float32)}, [Unreadable(1, "1", "bad")])
    store.sync()
    store.append({"pooled": np.full((2, 3), 7, np.float32)}, [Unreadable(3, "3", "bad")])
    store.close()
    again = RowStore(tmp_path, columns, names)
    assert (again.done, [row["row"] for row in again.unreadable()]) == (2, [1])
    again.append({"pooled": np.full((1, 3), 2, np.float32)}, [])
    again.sync()
    np.testing.assert_array_equal(again.rows(columns[0], 0, 3)[:, 0], [1, 1, 2])
    assert again.path(columns[0]).stat().st_size == 3 * 12
    again.close()


# --- what is refused ------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_any_work(weights: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "there.npy").write_bytes(b"mine")
    for arguments, message in (
        ([weights, images, "--out", tmp_path / "e.csv"], "embeddings are written as .npy, .parquet, .safetensors"),
        ([weights, images, "--out", tmp_path / "there.npy"], "exists already"),
        ([weights, tmp_path / "none", "--out", tmp_path / "e.npy"], "does not exist"),
        (
            [weights, images, "--out", tmp_path / "e.npy", "--image-size", "15"],
            "must be multiples of the patches' 4 px",
        ),
        ([weights, images, "--out", tmp_path / "e.npy", "--image-size", "48000"], "both sides must be at most 8192"),
        ([weights, images, "--out", tmp_path / "e.npy", "--image-size", "big"], "write a side in pixels"),
        ([weights, images, "--out", tmp_path / "e.npy", "--features", "all"], "it is one of pooled, patches, both"),
        ([tmp_path, images, "--out", tmp_path / "e.npy"], "is not a run folder"),
    ):
        result = cjepa("embed", *arguments)
        assert result.exit_code == 2, (message, result.output)
        assert message in " ".join(result.output.split())
    assert (tmp_path / "there.npy").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.npy"]


def test_files_beside_other_embeddings_stay_theirs(weights: Path, images: Path, tmp_path: Path) -> None:
    """e.npy and e.safetensors have their names in one file; e.patches.npy may be what another call was asked for."""
    others = write_images(tmp_path / "others", count=2)
    folder = tmp_path / "out"
    embed_images(weights, images, folder / "e.npy", device="cpu")
    embed_images(weights, others, folder / "f.patches.npy", EmbeddingJob("patches"), device="cpu")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for out, job, message in (
        ("e.safetensors", EmbeddingJob(), r"e\.names\.jsonl is that of .*e\.npy, of other images"),
        ("f.npy", EmbeddingJob("both"), r"f\.patches\.npy exists already, with names of its own"),
    ):
        with pytest.raises(InputError, match=message):
            embed_images(weights, others, folder / out, job, device="cpu")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    embed_images(weights, images, folder / "e.safetensors", device="cpu")
    assert (folder / "e.names.jsonl").read_bytes() == before["e.names.jsonl"]


def test_what_was_unreadable_before_is_not_said_of_images_that_were_mended(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    mended = Path(shutil.copytree(images, tmp_path / "images"))
    out = tmp_path / "e.npy"
    embed_images(weights, mended, out, device="cpu")
    assert (tmp_path / "e.unreadable.jsonl").exists()
    shutil.copy(mended / "a" / "0008.png", mended / "a" / "0009b.png")
    out.unlink()
    assert embed_images(weights, mended, out, device="cpu").unreadable == 0
    assert not (tmp_path / "e.unreadable.jsonl").exists()


@pytest.mark.parametrize("cut", [True, False])
def test_rows_that_were_cut_are_computed_again(weights: Path, images: Path, tmp_path: Path, cut: bool) -> None:
    """Opened at its recorded length, a file that lost its rows would have zeros for them."""
    out, job = tmp_path / "e.npy", EmbeddingJob(batch_size=16)
    embed_images(weights, images, tmp_path / "whole.npy", job, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        _stop_at_the_first_batch(patch)
        with pytest.raises(StoppedEarly):
            embed_images(weights, images, out, job, device="cpu")
    if cut:
        (tmp_path / ".e.npy.part" / "pooled.f32").write_bytes(b"")
    else:
        (tmp_path / ".e.npy.part" / "done.json").write_text("")
    assert embed_images(weights, images, out, job, device="cpu").computed == 49
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_another_process_is_not_disturbed(weights: Path, images: Path, tmp_path: Path) -> None:
    part = tmp_path / ".e.npy.part"
    part.mkdir()
    with FileLock(part / ".lock"), pytest.raises(InputError, match="another process writes into"):
        embed_images(weights, images, tmp_path / "e.npy", device="cpu")


@pytest.mark.usefixtures("without_locks")
def test_a_folder_without_locks_is_refused(weights: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its file system has no locks .*; name a file elsewhere with --out"):
        embed_images(weights, images, tmp_path / "e.npy", device="cpu")


def test_embeddings_that_are_not_finite_are_not_written(images: Path, tmp_path: Path) -> None:
    encoder = pretrained(size=(16, 16))
    with torch.no_grad():
        encoder.encoder.norm.bias[0] = torch.inf
    (tmp_path / "w").mkdir()
    write_folder(tmp_path / "w", encoder.encoder.config, encoder.preparation, encoder.encoder.state_dict())
    with pytest.raises(DivergedError, match="not finite"):
        embed_images(tmp_path / "w", images, tmp_path / "e.npy", device="cpu")
    assert not (tmp_path / "e.npy").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu(weights: Path, images: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    embed_images(weights, images, tmp_path / "e.npy", EmbeddingJob(batch_size=7), device="cuda", workers=2)
    np.testing.assert_allclose(np.load(tmp_path / "e.npy")[READABLE], expected.mean(1), atol=2e-2)


def test_what_is_left_out_of_the_images_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("train", "test", "val"):
        write_images(tmp_path / folder)
    for opening in (
        lambda: embedding._source(tmp_path),
        lambda: open_labelled(DataConfig(source=FolderConfig(path=tmp_path)), 0),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            opening()
        assert "ignored beside train and test: val" in caplog.text
