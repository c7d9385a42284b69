import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cjepa.errors import InputError, StorageError
from cjepa.training.run_folder import RunFolder


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


class TestOpening:
    def test_creates_the_folder_and_leaves_no_trace_of_the_probe(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path / "runs" / "first") as folder:
            assert folder.path.is_dir()
            assert names_in(folder.path) == []
            assert not list(folder.path.glob(".tmp-*"))
            assert folder.checkpoints == folder.path / "checkpoints"

    def test_a_run_is_opened_again(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path / "run") as folder:
            folder.write("config.yaml", "seed: 1\n")
        (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
        with RunFolder(tmp_path / "run") as folder:
            assert names_in(folder.path) == ["config.yaml", "metrics.jsonl"]

    def test_run_that_ended_before_its_config_was_written(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path / "run") as folder:
            (folder.path / "train.log").write_text("data: no such folder")
        with RunFolder(tmp_path / "run") as folder:
            assert names_in(folder.path) == ["train.log"]

    def test_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("")
        with pytest.raises(InputError, match=r"run is a file; choose another path"), RunFolder(tmp_path / "run"):
            pass

    def test_file_above_it(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be written"), RunFolder(tmp_path / "file" / "run"):
            pass

    def test_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.jpg").write_bytes(b"x")
        with (
            pytest.raises(InputError, match=r"not a run folder \(it has 'holiday.jpg' but no config\.yaml\)"),
            RunFolder(tmp_path),
        ):
            pass
        assert [entry.name for entry in tmp_path.iterdir()] == ["holiday.jpg"], "nothing was left in it"

    def test_folder_without_permission(self) -> None:
        with somewhere_public() as place, without_rights():
            with pytest.raises(InputError, match=r"cannot be written: .*Permission denied"), RunFolder(place):
                pass
            with pytest.raises(InputError, match=r"cannot be written: .*Permission denied"), RunFolder(place / "run"):
                pass

    def test_file_system_that_refuses(self) -> None:
        if not Path("/proc/self").exists():
            pytest.skip("needs /proc as a file system that nobody can write to")
        with pytest.raises(InputError, match="cannot be written"), RunFolder(Path("/proc/cjepa-run")):
            pass

    @pytest.mark.parametrize("operation", ["fsync", "rename"])
    def test_probe_notices_what_a_save_would_run_into(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, operation, refuse)
        with pytest.raises(InputError, match="Input/output error"), RunFolder(tmp_path / "run"):
            pass
        assert list((tmp_path / "run").iterdir()) == []


class TestWriting:
    def test_write_replaces_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with RunFolder(tmp_path / "run") as folder:
            folder.write("config.yaml", "name: ü\n")
            monkeypatch.setattr(os, "fsync", _fail)
            with pytest.raises(StorageError, match="No space"):
                folder.write("config.yaml", "half")
            assert (folder.path / "config.yaml").read_text(encoding="utf-8") == "name: ü\n"
            assert not list(folder.path.glob(".tmp-*"))


class TestLock:
    def test_second_run_in_the_same_process(self, tmp_path: Path) -> None:
        with (
            RunFolder(tmp_path / "run"),
            pytest.raises(InputError, match=f"in use by process {os.getpid()} on "),
            RunFolder(tmp_path / "run", patience=0.0),
        ):
            pass
        with RunFolder(tmp_path / "run", patience=0.0):
            pass

    def test_error_inside_frees_it(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), RunFolder(tmp_path / "run"):
            raise KeyError
        with RunFolder(tmp_path / "run", patience=0.0):
            pass

    def test_unknown_owner(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path / "run") as folder:
            for content in ("", "[]", "{}", "nonsense"):
                (folder.path / ".owner.json").write_text(content)
                with (
                    pytest.raises(InputError, match="in use by another process"),
                    RunFolder(tmp_path / "run", patience=0.0),
                ):
                    pass

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
    def test_file_system_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        """Some NFS and Lustre mounts; filelock alone makes do with a file that a killed run leaves for ever."""

        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(InputError, match="has no locks, so two runs"), RunFolder(tmp_path / "run"):
            pass
        assert list((tmp_path / "run").iterdir()) == []

    def test_lock_that_lingers_for_a_moment_is_waited_for(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        with (tmp_path / "run" / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            lingering = subprocess.Popen(["sleep", "1"], pass_fds=[file.fileno()])
        with pytest.raises(InputError, match="in use"), RunFolder(tmp_path / "run", patience=0.0):
            pass
        with RunFolder(tmp_path / "run"):
            pass
        assert lingering.wait() == 0

    @pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a worker"])
    def test_another_process_holds_it_until_it_is_killed(self, tmp_path: Path, forks: bool) -> None:
        """A loader worker inherits the open lock file and outlives a killed run by up to five seconds."""
        script = f"""
import os, sys, time
from pathlib import Path
from cjepa.training.run_folder import RunFolder
with RunFolder(Path({str(tmp_path / "run")!r})):
    if {forks} and os.fork() == 0:
        time.sleep(2)
        os._exit(0)
    print("open", flush=True)
    time.sleep(60)
"""
        first = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "open\n"
            owner = json.loads((tmp_path / "run" / ".owner.json").read_text())
            assert owner["pid"] == first.pid
            with (
                pytest.raises(InputError, match=f"in use by process {first.pid} on {owner['host']}"),
                RunFolder(tmp_path / "run", patience=0.1),
            ):
                pass
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            with RunFolder(tmp_path / "run"):
                pass
        finally:
            os.killpg(first.pid, signal.SIGKILL) if forks else first.kill()
            first.communicate()


def _fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


@contextmanager
def somewhere_public() -> Iterator[Path]:
    """A folder that everybody may enter and only its owner may write to; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user who owns nothing: root may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
