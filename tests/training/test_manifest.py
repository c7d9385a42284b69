"""The manifest reader never accepts a mutated file and never fails in another way than it says."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.errors import NoValidCheckpointError
from cjepa.training.checkpoint import CheckpointStore


@pytest.fixture(scope="module")
def store() -> Iterator[CheckpointStore]:
    folder = Path(tempfile.mkdtemp())
    store = CheckpointStore(folder)
    store.save(300, {"encoder": {"weight": torch.ones(3)}, "training": {"moment": torch.ones(3)}}, {"seed": 1})
    yield store
    shutil.rmtree(folder)


def manifest_path(store: CheckpointStore) -> Path:
    return store.folder / "step-00000300" / "manifest.json"


def refused(store: CheckpointStore, content: bytes) -> list[str]:
    """The problems found with this manifest, which is put back afterwards."""
    path = manifest_path(store)
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        problems = store.verify(300)
        if problems:
            with pytest.raises(NoValidCheckpointError):
                store.newest()
            with pytest.raises(NoValidCheckpointError):
                store.load(300)
        return problems
    finally:
        path.write_bytes(original)


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[float, float, bytes]]:
    """Cuts: from, to (as shares of the length) and what takes their place."""
    share = st.floats(0, 1)
    return draw(st.lists(st.tuples(share, share, st.binary(max_size=8)), min_size=1, max_size=3))


@settings(max_examples=150, deadline=None)
@given(edits())
def test_mutated_bytes_are_refused(store: CheckpointStore, changes: list[tuple[float, float, bytes]]) -> None:
    original = manifest_path(store).read_bytes()
    content = original
    for first, last, replacement in changes:
        start, stop = sorted((int(first * len(content)), int(last * len(content))))
        content = content[:start] + replacement + content[stop:]
    assert (refused(store, content) == []) == (content == original)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    ),
    st.sampled_from(["format_version", "step", "files", "encoder", "size", "sha256", "other", "whole"]),
)
def test_mutated_values_are_refused(store: CheckpointStore, value: Any, place: str) -> None:
    original = manifest_path(store).read_bytes()
    manifest = json.loads(original)
    entry = manifest["files"]["encoder.safetensors"]
    match place:
        case "whole":
            manifest = value
        case "encoder":
            manifest["files"]["encoder.safetensors"] = value
        case "size" | "sha256":
            entry[place] = value
        case _:
            manifest[place] = value
    content = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    assert (refused(store, content) == []) == (content == original)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "format_version 2 is unknown"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 0'), "format_version 0 is unknown"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2, "new_key": 1'), "format_version 2"),
        (lambda text: text.replace('"format_version": 1', '"format_version": true'), "format_version: "),
        (lambda text: text.replace('"format_version": 1', '"format_version": 1.0'), "was changed|format_version: "),
        (lambda text: text.replace('"format_version": 1', '"version": 1'), "format_version: Field required"),
        (lambda text: text.replace('"step": 300', '"step": 301'), "step is 301, not 300"),
        (lambda text: text.replace('"step": 300', '"step": 300, "step": 300'), "was changed"),
        (lambda text: text.replace("\n", "\r\n"), "was changed"),
        (lambda text: text.rstrip("\n"), "was changed"),
        (lambda text: json.dumps(json.loads(text)), "was changed"),
        (lambda text: text.replace("encoder.safetensors", "../encoder.safetensors"), "files"),
        (lambda text: text.replace("encoder.safetensors", "./encoder.safetensors"), "files"),
        (lambda text: text.replace("encoder.safetensors", "encoder.safetensors\\n"), "files"),
        (lambda text: text.replace("encoder.safetensors", "encoder.safetensors/"), "files"),
        (lambda text: text.replace("encoder.safetensors", ""), "files"),
        (lambda text: text.replace("encoder.safetensors", "decoder.safetensors"), "decoder.safetensors is missing"),
        (lambda text: "[" * 100_000, "manifest.json: "),
        (lambda text: '{"format_version": 1, "files": ' + '{"a":' * 100_000, "manifest.json: "),
        (lambda text: "9" * 100_000, "manifest.json: "),
        (lambda text: "\ufeff" + text, "manifest.json: "),
    ],
)
def test_reasons_are_named(store: CheckpointStore, change: Any, message: str) -> None:
    changed = change(manifest_path(store).read_text())
    problems = refused(store, changed.encode())
    import re

    assert re.search(message, "; ".join(problems)), problems


def test_entry_left_out_is_noticed(store: CheckpointStore) -> None:
    manifest = json.loads(manifest_path(store).read_text())
    del manifest["files"]["training.safetensors"]
    content = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    assert refused(store, content) == ["training.safetensors is not in the manifest"]


def test_unchanged_manifest_is_accepted(store: CheckpointStore) -> None:
    assert refused(store, manifest_path(store).read_bytes()) == []
