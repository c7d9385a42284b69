import errno
import json
import logging
import os
import resource
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.errors import InputError, NoValidCheckpointError
from cjepa.training import checkpoint as module
from cjepa.training.checkpoint import CheckpointSaveError, CheckpointStore
from cjepa.training.durable import write_new
from cjepa.training.manifest import FileEntry, read_verified_state

NAMES = ("encoder.safetensors", "target_encoder.safetensors", "training.safetensors", "state.json", "manifest.json")


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    draw = {name: torch.randn(5, 3, generator=generator) for name in ("encoder", "target_encoder", "training")}
    return {name: {"weight": value, "count": torch.tensor(step)} for name, value in draw.items()}


def save(store: CheckpointStore, step: int, protect: tuple[int, ...] = ()) -> None:
    store.save(step, tensors_of(step), {"samples": step * 8, "loss": 1 / 3}, protect)


def store_with(folder: Path, *steps: int, keep: int = 2) -> CheckpointStore:
    store = CheckpointStore(folder / "checkpoints", keep)
    for step in steps:
        save(store, step)
    return store


def assert_is(checkpoint: module.Checkpoint | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.step == step
    assert checkpoint.state == {"samples": step * 8, "loss": 1 / 3}
    for name, entry in tensors_of(step).items():
        loaded = checkpoint.tensors(name)
        assert loaded.keys() == entry.keys()
        assert all(torch.equal(loaded[key], entry[key]) for key in entry)


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_link(path: Path) -> None:
    copy = path.parents[2] / f"copy-{path.name}"
    path.rename(copy)
    path.symlink_to(copy)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "one bit flipped": flip_one_bit,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty object": lambda path: path.write_bytes(b"{}"),
    "deleted": lambda path: path.unlink(),
    "a link": replace_by_link,
    "a folder": replace_by_folder,
    "a pipe": replace_by_pipe,
}


@contextmanager
def new_folder() -> Iterator[Path]:
    """For property tests, whose examples would all share pytest's tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class TestSaving:
    def test_what_was_saved_comes_back(self, tmp_path: Path) -> None:
        assert_is(store_with(tmp_path, 7).newest(), 7)

    def test_no_checkpoint_is_none(self, tmp_path: Path) -> None:
        assert CheckpointStore(tmp_path / "checkpoints").newest() is None
        (tmp_path / "checkpoints").mkdir()
        assert CheckpointStore(tmp_path / "checkpoints").newest() is None

    def test_layout_is_the_documented_one(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 12, 123_456_789)
        assert sorted(entry.name for entry in store.folder.iterdir()) == ["step-00000012", "step-123456789"]
        manifest = json.loads((store.folder / "step-00000012" / "manifest.json").read_text())
        assert manifest["format_version"] == 1
        assert manifest["step"] == 12
        assert set(manifest["files"]) == set(NAMES) - {"manifest.json"}
        for name, entry in manifest["files"].items():
            assert entry["size"] == (store.folder / "step-00000012" / name).stat().st_size
            assert len(entry["sha256"]) == 64

    def test_awkward_tensors(self, tmp_path: Path) -> None:
        whole = torch.arange(12.0).view(3, 4)
        awkward = {
            "whole": whole,
            "shared": whole,
            "transposed": whole.T,
            "row": whole[1],
            "expanded": torch.ones(1).expand(4),
            "scalar": torch.tensor(2, dtype=torch.int64),
            "empty": torch.zeros(0, 3),
            "also_empty": torch.zeros(0),
            "half": whole.bfloat16(),
            "parameter": torch.nn.Parameter(whole),
            "bool": whole > 3,
        }
        store = CheckpointStore(tmp_path)
        store.save(1, {"odd": awkward, "nothing": {}}, {})
        newest = store.newest()
        assert newest is not None
        loaded = newest.tensors("odd")
        assert loaded.keys() == awkward.keys()
        for name, tensor in awkward.items():
            assert torch.equal(loaded[name], tensor), name
            assert loaded[name].dtype == tensor.dtype
        assert newest.tensors("nothing") == {}

    def test_loaded_tensors_can_be_changed_without_changing_the_file(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 1)
        store.load(1).tensors("encoder")["weight"].zero_()
        assert store.verify(1) == []
        assert_is(store.newest(), 1)

    def test_floats_of_the_state_are_exact(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path)
        state = {"values": [0.1 + 0.2, 5e-324, 1.7976931348623157e308], "nested": {"text": "ü\n", "none": None}}
        store.save(1, {}, state)
        assert store.load(1).state == state

    def test_non_finite_state_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            CheckpointStore(tmp_path / "checkpoints").save(1, {}, {"loss": float("nan")})
        assert not (tmp_path / "checkpoints").exists()

    def test_unknown_tensors_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no tensors named 'decoder'; it holds encoder, target_encoder, training"):
            store_with(tmp_path, 1).load(1).tensors("decoder")

    def test_newest_is_by_step_not_by_time(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 99_999_999, 100_000_000)
        tomorrow = time.time() + 86_400
        os.utime(store.folder / "step-99999999", (tomorrow, tomorrow))
        os.utime(store.folder / "step-100000000", (0, 0))
        assert_is(store.newest(), 100_000_000)

    def test_clock_that_goes_back_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_with(tmp_path, 1)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        save(store, 2)
        assert_is(store.newest(), 2)

    @pytest.mark.parametrize("name", ["step-1", "step-000000012", "step-0000001x", "xstep-00000012", "notes.txt"])
    def test_other_names_are_not_checkpoints(self, tmp_path: Path, name: str) -> None:
        store = store_with(tmp_path, 2)
        shutil.copytree(store.folder / "step-00000002", store.folder / name)
        assert store.steps() == [2]

    def test_files_that_systems_leave_behind_do_no_harm(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 2)
        (store.folder / "step-00000002" / ".DS_Store").write_bytes(b"x")
        assert_is(store.newest(), 2)

    def test_same_step_again_replaces(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 1, 2)
        store.save(2, {"encoder": {"weight": torch.zeros(2)}}, {"second": True})
        assert store.load(2).state == {"second": True}
        assert sorted(entry.name for entry in store.folder.iterdir()) == ["step-00000001", "step-00000002"]

    @pytest.mark.parametrize("damage", ["deleted", "a link", "a folder"])
    def test_damaged_checkpoint_of_the_same_step_is_replaced(self, tmp_path: Path, damage: str) -> None:
        store = store_with(tmp_path, 1, 2)
        DAMAGES[damage](store.folder / "step-00000002" / "state.json")
        save(store, 2)
        assert_is(store.newest(), 2)

    def test_something_else_in_the_place_of_a_step_is_replaced(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 1)
        (store.folder / "step-00000002").write_text("a file")
        (store.folder / "step-00000003").symlink_to(tmp_path / "nowhere")
        save(store, 2)
        save(store, 3)
        assert_is(store.newest(), 3)

    def test_reader_overtaken_by_the_deletion_of_what_it_listed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = store_with(tmp_path, 1, 2)
        listed = iter([[1, 2]])
        steps = store.steps
        monkeypatch.setattr(store, "steps", lambda: next(listed, None) or steps())
        for step in (3, 4):
            save(CheckpointStore(store.folder), step)
        assert_is(store.newest(), 4)

    def test_leftovers_of_a_failed_save_go_with_the_next(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 1)
        (store.folder / ".tmp-step-00000002-0a0b0c0d").mkdir()
        (store.folder / ".tmp-step-00000002-0a0b0c0d" / "state.json").write_text("{")
        (store.folder / ".tmp-link").symlink_to(store.folder / "step-00000001")
        save(store, 2)
        assert sorted(entry.name for entry in store.folder.iterdir()) == ["step-00000001", "step-00000002"]
        assert_is(store.load(1), 1)

    def test_reader_beside_a_saving_process(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        store = store_with(tmp_path, 0)

        def save_many() -> None:
            for step in range(1, 20):
                save(store, step)

        saver = threading.Thread(target=save_many)
        saver.start()
        seen = [0]
        while saver.is_alive():
            newest = CheckpointStore(store.folder).newest()
            assert newest is not None
            seen.append(newest.step)
        saver.join()
        assert seen == sorted(seen)
        assert len(set(seen)) > 2


class TestDamage:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_previous_one_is_used_and_the_damage_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
    ) -> None:
        store = store_with(tmp_path, 1, 2)
        DAMAGES[damage](store.folder / "step-00000002" / name)
        with caplog.at_level(logging.WARNING):
            assert_is(store.newest(), 1)
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert "step-00000002" in record.getMessage()
        assert name in record.getMessage()
        with pytest.raises(NoValidCheckpointError, match="step-00000002"):
            store.load(2)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_only_one_damaged_is_an_error(self, tmp_path: Path, name: str, damage: str) -> None:
        store = store_with(tmp_path, 1)
        DAMAGES[damage](store.folder / "step-00000001" / name)
        with pytest.raises(NoValidCheckpointError, match=name) as error:
            store.newest()
        assert error.value.exit_code == 4

    def test_every_bit_of_every_file_is_checked(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path)
        store.save(1, {"encoder": {"weight": torch.ones(2)}}, {"a": 1})
        for path in sorted(store.folder.glob("step-*/*")):
            content = path.read_bytes()
            for position in range(len(content)):
                changed = bytearray(content)
                changed[position] ^= 1 << (position % 8)
                path.write_bytes(changed)
                assert store.verify(1) != [], (path.name, position)
            path.write_bytes(content)
        assert store.verify(1) == []

    def test_half_written_folders(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 1)
        (store.folder / "step-00000002").mkdir()
        (store.folder / "step-00000003").mkdir()
        shutil.copy(store.folder / "step-00000001" / "state.json", store.folder / "step-00000003")
        (store.folder / "step-00000004").write_text("a file")
        (store.folder / "step-00000005").symlink_to(store.folder / "step-00000001")
        shutil.copytree(store.folder / "step-00000001", store.folder / "step-00000006")
        assert_is(store.newest(), 1)
        assert "step is 1, not 6" in store.verify(6)[0]

    def test_extra_file_is_a_problem(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 1)
        (store.folder / "step-00000001" / "more.safetensors").write_bytes(b"x")
        assert store.verify(1) == ["more.safetensors is not in the manifest"]

    def test_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").write_text("")
        with pytest.raises(InputError, match="cannot be listed"):
            CheckpointStore(tmp_path / "checkpoints").newest()


class TestRetention:
    def test_newest_two_stay(self, tmp_path: Path) -> None:
        assert store_with(tmp_path, *range(1, 6)).steps() == [4, 5]

    def test_keep_three(self, tmp_path: Path) -> None:
        assert store_with(tmp_path, *range(1, 6), keep=3).steps() == [3, 4, 5]

    @pytest.mark.parametrize("keep", [1, 0, -1])
    def test_fewer_than_two_is_refused(self, tmp_path: Path, keep: int) -> None:
        with pytest.raises(InputError, match="at least 2"):
            CheckpointStore(tmp_path, keep)

    def test_protected_one_stays(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 1, 2)
        for step in (3, 4, 5):
            save(store, step, protect=(2,))
        assert store.steps() == [2, 4, 5]

    def test_damaged_ones_do_not_count(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 1, 2, keep=2)
        flip_one_bit(store.folder / "step-00000002" / "training.safetensors")
        save(store, 3)
        assert store.steps() == [1, 2, 3]
        save(store, 4)
        assert store.steps() == [3, 4]

    def test_saved_step_stays_though_later_ones_exist(self, tmp_path: Path) -> None:
        store = store_with(tmp_path, 10, 20)
        save(store, 5)
        assert store.steps() == [5, 10, 20]

    def test_nothing_is_deleted_when_the_new_one_fails_verification(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = store_with(tmp_path, 1, 2)

        def lying_disk(path: Path, content: bytes) -> None:
            write_new(path, content[:-1] if path.name == "training.safetensors" else content)

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_new", lying_disk)
            for step in (2, 3):
                with pytest.raises(CheckpointSaveError, match=r"training\.safetensors has"):
                    save(store, step)
        store.remove_leftovers()
        assert_is(store.newest(), 2)
        assert_is(store.load(1), 1)

    def test_failing_deletion_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = store_with(tmp_path, 1, 2)

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, "no")

        monkeypatch.setattr(module, "_remove", refuse)
        save(store, 3)
        assert "step 1 could not be deleted" in caplog.text

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 4)), min_size=1, max_size=8))
    def test_newest_two_valid_and_protected_always_stay(self, events: list[tuple[int, bool, int]]) -> None:
        with new_folder() as folder:
            store = CheckpointStore(folder)
            valid: set[int] = set()
            for step, damages, protected in events:
                save(store, step, protect=(protected,))
                stay = set(sorted(valid | {step})[-2:]) | ({protected} & valid) | {step}
                valid = {each for each in store.steps() if not store.verify(each)}
                assert stay <= valid
                if damages:
                    DAMAGES["deleted"](folder / f"step-{step:08d}" / "state.json")
                    valid.discard(step)


class TestFullDisk:
    def assert_untouched(self, store: CheckpointStore) -> None:
        assert sorted(entry.name for entry in store.folder.iterdir()) == ["step-00000001", "step-00000002"]
        assert_is(store.newest(), 2)
        save(store, 3)
        assert_is(store.newest(), 3)

    def test_space_is_checked_before_writing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_with(tmp_path, 1, 2)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 4567, 4567))
            patch.setattr(module, "write_new", lambda *_: pytest.fail("written though there is no space"))
            with pytest.raises(CheckpointSaveError, match=r"1,0\d\d,\d{3} bytes needed, 4,567 free") as error:
                save(store, 3)
        assert str(store.folder) in str(error.value)
        assert error.value.exit_code == 75
        self.assert_untouched(store)

    @pytest.mark.parametrize("call", range(7))
    def test_each_sync_may_fail(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
        """Calls 0 to 4 sync the files, 5 the temporary folder, 6 the parent: the rename has happened by then."""
        store = store_with(tmp_path, 1, 2)
        calls = iter(range(100))

        def fail(descriptor: int) -> None:
            if next(calls) == call:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(CheckpointSaveError, match="No space left on device"):
                save(store, 3)
        if call < 6:
            self.assert_untouched(store)
        else:
            assert_is(store.load(2), 2)

    def test_write_that_the_system_refuses(self, tmp_path: Path) -> None:
        """RLIMIT_FSIZE makes the kernel refuse a large file halfway, as a full disk does."""
        store = store_with(tmp_path, 1, 2)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            with pytest.raises(CheckpointSaveError, match="File too large"):
                store.save(3, {"encoder": {"weight": torch.zeros(1 << 16)}}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.assert_untouched(store)

    def test_vanished_run_folder_does_not_come_back_empty(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path / "run" / "checkpoints")
        with pytest.raises(CheckpointSaveError, match="run/checkpoints"):
            save(store, 1)
        assert not (tmp_path / "run").exists()


def test_order_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, then their folder, are synced before the rename; the parent after it; only then is anything deleted."""
    store = store_with(tmp_path, 1, 2)
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        events.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name.split("-")[0])
        fsync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        events.append(f"rename {path.name.split('-')[0]} to {target.name.split('-')[0]}")
        return rename(path, target)

    def record_read(folder: Path, step: int) -> dict[str, object]:
        events.append(f"verify {step}")
        return read_verified_state(folder, step)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    monkeypatch.setattr(module, "read_verified_state", record_read)
    save(store, 3)
    files = [f"sync {name}" for name in ("state.json", *NAMES[:3], "manifest.json")]
    commit = ["sync .tmp", "rename .tmp to step", "sync checkpoints", "verify 3"]
    assert events == [*files, *commit, "verify 2", "rename step to .tmp"]


class TestStrangers:
    """A checkpoint from elsewhere whose manifest fits its files: verification cannot see that it is foreign."""

    def forge(
        self, folder: Path, files: dict[str, bytes], elsewhere: dict[str, bytes] | None = None
    ) -> CheckpointStore:
        entries = {name: FileEntry.of(content).model_dump() for name, content in (files | (elsewhere or {})).items()}
        path = folder / "step-00000001"
        path.mkdir(parents=True)
        manifest = {"files": entries, "format_version": 1, "step": 1}
        (path / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        for name, content in files.items():
            (path / name).write_bytes(content)
        return CheckpointStore(folder)

    def test_forgery_as_such_is_accepted(self, tmp_path: Path) -> None:
        assert self.forge(tmp_path, {"state.json": b"{}"}).load(1).state == {}

    @pytest.mark.parametrize(
        "name", [".x.json", "X.json", "x.pt", "x.pkl", "x.json\n", "x" * 200 + ".json", "x y.json"]
    )
    def test_names_must_be_plain(self, tmp_path: Path, name: str) -> None:
        store = self.forge(tmp_path, {"state.json": b"{}", name: b"x"})
        with pytest.raises(NoValidCheckpointError, match="files"):
            store.newest()

    @pytest.mark.parametrize(
        "name", ["../x.json", "a/../../x.json", "/etc/passwd", "C:x.json", "..\\x.json", "x.json/", ""]
    )
    def test_names_must_stay_in_the_folder(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "x.json").write_bytes(b"x")
        store = self.forge(tmp_path / "checkpoints", {"state.json": b"{}"}, elsewhere={name: b"x"})
        with pytest.raises(NoValidCheckpointError, match="files"):
            store.newest()

    @pytest.mark.parametrize(
        "state",
        [
            b"",
            b"[]",
            b"null",
            b'{"a": NaN}',
            b'{"a": -Infinity}',
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"a": ' + b"9" * 5000 + b"}",
        ],
        ids=["empty", "list", "null", "nan", "infinity", "not text", "deep list", "deep object", "huge number"],
    )
    def test_state_must_be_a_json_object(self, tmp_path: Path, state: bytes) -> None:
        with pytest.raises(NoValidCheckpointError, match=r"state\.json"):
            self.forge(tmp_path, {"state.json": state}).newest()

    def test_sizes_are_bounded(self, tmp_path: Path) -> None:
        store = self.forge(tmp_path, {"state.json": b"{}" + b" " * (64 << 20)})
        assert store.verify(1) == ["state.json is larger than 67,108,864 bytes"]
        (store.folder / "step-00000001" / "manifest.json").write_bytes(b" " * (2 << 20))
        assert store.verify(1) == ["manifest.json is larger than 1,048,576 bytes"]

    @settings(max_examples=40, deadline=None)
    @given(
        st.binary(max_size=200)
        | st.builds(
            lambda size, rest: struct.pack("<Q", size) + rest, st.integers(0, 2**64 - 1), st.binary(max_size=99)
        )
    )
    def test_tensors_are_loaded_or_refused(self, content: bytes) -> None:
        with new_folder() as folder:
            store = self.forge(folder, {"state.json": b"{}", "encoder.safetensors": content})
            try:
                assert isinstance(store.load(1).tensors("encoder"), dict)
            except InputError as error:
                assert "encoder.safetensors cannot be read" in str(error)  # noqa: PT017
