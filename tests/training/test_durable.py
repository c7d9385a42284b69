import os
from pathlib import Path

import pytest

from cjepa.training.durable import replace, sync_folder, write_new


def test_write_new_refuses_what_exists(tmp_path: Path) -> None:
    write_new(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_replace(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        replace(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_replace_interrupted_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    replace(tmp_path / "a", b"first")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_content_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        events.append("sync")
        fsync(descriptor)

    def record_rename(first: str, second: str) -> None:
        events.append("name")
        rename(first, second)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    replace(tmp_path / "a", b"content")
    assert events == ["sync", "name", "sync"]


def test_sync_folder_leaves_nothing_open(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else set()
    for _ in range(50):
        sync_folder(tmp_path)
    if before:
        assert len(set(Path("/proc/self/fd").iterdir())) <= len(before) + 5
