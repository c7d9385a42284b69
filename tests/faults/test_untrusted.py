"""What a stranger may hand over, on every path that reads something: it runs no code and leaves no mark.

Tar shards and weights of other packages have their own tests beside their readers.
"""

import ast
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors
from typer.testing import CliRunner

import cjepa
from cjepa.cli import app
from cjepa.config import RunConfig, dump_yaml, load_yaml, parse, read_yaml
from cjepa.config.presets import resolve
from cjepa.data import DataConfig, FolderConfig, UnreadableImageError, decode, open_source
from cjepa.errors import CjepaError, InputError, NoValidCheckpointError
from cjepa.runs import diagnose
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.manifest import FileEntry
from tests.tiny_runs import write_config, write_images

PACKAGE = Path(cjepa.__file__).parent


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a payload makes; the fixture fails the test that lets it."""
    return tmp_path / "marker"


@pytest.fixture(autouse=True)
def no_marks(marker: Path):  # type: ignore[no-untyped-def]
    yield
    assert not marker.exists(), "a payload ran"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("finished")
    images, config = write_images(folder / "images"), write_config(folder)
    command = [sys.executable, "-m", "cjepa", "pretrain", str(config), f"data={images}", "--out", str(folder / "run")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    subprocess.run(["cp", "-r", str(finished), str(tmp_path / "run")], check=True)
    return tmp_path / "run"


def test_the_payload_works(tmp_path: Path) -> None:
    """Or the tests below would show nothing."""
    other = tmp_path / "other marker"
    pickle.loads(pickle.dumps(Payload(Path(str(other).replace(" ", "\\ ")))))
    assert other.exists()


def payloads(marker: Path, folder: Path) -> dict[str, bytes]:
    """Files of other kinds than they are called."""
    torch.save({"weight": Payload(marker)}, folder / "payload.pt")
    np.save(folder / "payload.npy", np.array([Payload(marker)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(folder / "payload.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../escaped", bytes(30 << 20))
        archive.writestr("data.pkl", pickle.dumps(Payload(marker)))
    with tarfile.open(folder / "payload.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("../escaped"))
    names = ("payload.pt", "payload.npy", "payload.zip", "payload.tar")
    return {"pickle": pickle.dumps(Payload(marker)), **{name: (folder / name).read_bytes() for name in names}}


def forged(run: Path, **files: bytes) -> Path:
    """The last checkpoint with other contents, and a manifest that fits them."""
    [*_, checkpoint] = sorted((run / "checkpoints").iterdir())
    for name, content in files.items():
        (checkpoint / name.replace("__", ".")).write_bytes(content)
    names = [path.name for path in checkpoint.iterdir() if path.name != "manifest.json"]
    entries = {name: FileEntry.of((checkpoint / name).read_bytes()).model_dump() for name in sorted(names)}
    manifest = {"files": entries, "format_version": 1, "step": int(checkpoint.name.removeprefix("step-"))}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return checkpoint


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's product in bfloat16 takes a second on some processors, and is of no interest here."""
    monkeypatch.setattr("cjepa.runs.doctor._bfloat16", str)


def everything_that_reads(run: Path) -> None:
    """Every way to a checkpoint; only declared errors may come out."""
    for attempt in (
        lambda: cjepa.load_encoder(run),
        lambda: cjepa.load_encoder(run, checkpoint="best"),
        lambda: diagnose(run),
    ):
        with suppress(CjepaError):
            attempt()
    for arguments in (["doctor", str(run)], ["replay", str(run)]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (0, 2, 4), result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output


@pytest.mark.parametrize("kind", ["pickle", "payload.pt", "payload.npy", "payload.zip", "payload.tar"])
def test_payloads_in_the_place_of_tensors(run: Path, tmp_path: Path, marker: Path, kind: str) -> None:
    forged(run, target_encoder__safetensors=payloads(marker, tmp_path)[kind])
    everything_that_reads(run)
    with pytest.raises(InputError, match=r"target_encoder\.safetensors cannot be read"):
        cjepa.load_encoder(run)
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("name", ["weights.pt", "data.pkl", "encoder.pth", "__init__.py", "sitecustomize.py"])
def test_payloads_beside_the_tensors(run: Path, tmp_path: Path, marker: Path, name: str) -> None:
    [*_, checkpoint] = sorted((run / "checkpoints").iterdir())
    (checkpoint / name).write_bytes(payloads(marker, tmp_path)["payload.pt"])
    assert CheckpointStore(run / "checkpoints").verify(3) == [f"{name} is not in the manifest"]
    everything_that_reads(run)


def test_links_in_a_checkpoint(run: Path, tmp_path: Path) -> None:
    """A link could make a later save write, or a reader read, elsewhere."""
    [*_, checkpoint] = sorted((run / "checkpoints").iterdir())
    secret = tmp_path / "secret.safetensors"
    (checkpoint / "encoder.safetensors").rename(secret)
    (checkpoint / "encoder.safetensors").symlink_to(secret)
    assert CheckpointStore(run / "checkpoints").verify(3) == ["encoder.safetensors is missing"]
    (checkpoint / "encoder.safetensors").unlink()
    content = secret.read_bytes()
    checkpoint.rename(tmp_path / "elsewhere")
    checkpoint.symlink_to(tmp_path / "elsewhere")
    CheckpointStore(run / "checkpoints").save(3, {}, {})
    assert not checkpoint.is_symlink()
    assert (tmp_path / "elsewhere").is_dir()
    assert secret.read_bytes() == content


@pytest.mark.parametrize(
    "progress",
    [
        None,
        [],
        {},
        {"step": "3"},
        {"step": -3},
        {"step": 4},
        {"step": 3, "best_step": "../../etc"},
        {"step": 3, "best_step": 10**30},
        {"step": 3, "recent": {"losses": ["x"]}},
        {"step": 3, "untrained": {"__class__": "x"}},
        {"step": 3, "surprise": 1},
        {"step": 3, "unreadable": {"a": 1}},
    ],
)
def test_a_forged_progress(run: Path, progress: object) -> None:
    forged(run, state__json=json.dumps({"progress": progress}).encode())
    everything_that_reads(run)


def test_tensors_of_another_model_are_refused_by_name_before_they_are_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"patches.weight": torch.zeros(64, 1 << 20)}
    forged(run, target_encoder__safetensors=to_safetensors(large))
    monkeypatch.setattr("cjepa.training.checkpoint.load_file", lambda path: pytest.fail("read"))
    with pytest.raises(InputError, match=r"has shape .* instead of .*: the checkpoint is of another model or version"):
        cjepa.load_encoder(run)


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b"{" * 1000,
    ],
    ids=["4 TiB", "overlapping", "negative", "deep"],
)
def test_headers_that_lie(run: Path, header: bytes) -> None:
    forged(run, target_encoder__safetensors=len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(InputError):
        cjepa.load_encoder(run)


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch {marker}']",
        "seed: !!python/object/new:os.system ['touch {marker}']",
        "!!python/object/apply:subprocess.Popen [[touch, {marker}]]",
        "seed: !!python/name:os.system",
        "seed: !!python/module:os",
        "seed: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch {marker}']",
        "%TAG ! tag:yaml.org,2002:python/\n---\nseed: !object/apply:os.system ['touch {marker}']",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "seed: " + "[" * 5000,
        "seed: 1" + "0" * 90_000,
        "x" * 200_000,
    ],
    ids=["apply", "new", "popen", "name", "module", "verbatim", "directive", "aliases", "deep", "digits", "large"],
)
def test_configs_that_would_do_something(tmp_path: Path, marker: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(InputError):
        parse(RunConfig, load_yaml(path))
    result = CliRunner().invoke(app, ["pretrain", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output


def test_such_a_config_in_a_run_folder(run: Path, marker: Path) -> None:
    (run / "config.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {marker}']\n")
    everything_that_reads(run)
    with pytest.raises(yaml.constructor.ConstructorError, match="could not determine a constructor"):
        yaml.safe_load((run / "config.yaml").read_text())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.text(max_size=6)), min_size=1, max_size=3))
def test_mutated_configs_give_a_config_or_the_declared_error(edits: list[tuple[float, float, str]]) -> None:
    text = dump_yaml(resolve("small-96", ["data=somewhere"]))
    for first, last, replacement in edits:
        start, stop = sorted((int(first * len(text)), int(last * len(text))))
        stop = min(stop, start + 40)
        text = text[:start] + replacement + text[stop:]
    with suppress(InputError):
        values = read_yaml(text, "mutated")
        if isinstance(values, dict):
            assert isinstance(parse(RunConfig, values), RunConfig)


@pytest.mark.parametrize("name", ["data.json", "metrics.jsonl", "evaluations.jsonl", ".owner.json", "unreadable.jsonl"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\x00", b"[" * 100_000, b"null\n", b'{"step": 1e999}\n'])
def test_other_files_of_a_run_folder(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    everything_that_reads(run)
    if name == "evaluations.jsonl":
        result = CliRunner().invoke(app, ["evaluate", "knn", str(run), "k=[1]"])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "name",
    ["$(touch {marker}).jpg", "`touch {marker}`.jpg", "|touch {marker};.jpg", "; touch {marker} #.png", "%n.jpg"],
)
def test_names_of_images_run_nothing(tmp_path: Path, marker: Path, name: str) -> None:
    images = write_images(tmp_path / "images", ("",), 3)
    (images / name.replace("{marker}", marker.name)).write_bytes(b"not an image")
    source = open_source(DataConfig(source=FolderConfig(path=images)), 0).train
    with pytest.raises(UnreadableImageError):
        source.load(next(index for index, each in enumerate(source.names) if marker.name in each or "%n" in each))
    assert not Path(marker.name).exists()


@pytest.mark.parametrize("kind", ["pickle", "payload.pt", "payload.npy", "payload.zip", "payload.tar"])
def test_images_that_are_something_else(tmp_path: Path, marker: Path, kind: str) -> None:
    with pytest.raises(UnreadableImageError):
        decode(payloads(marker, tmp_path)[kind], 1_000_000)


def test_a_link_to_a_file_elsewhere_is_read_as_an_image_or_not_at_all(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ("",), 3)
    (images / "passwords.jpg").symlink_to("/etc/passwd")
    source = open_source(DataConfig(source=FolderConfig(path=images)), 0).train
    with pytest.raises(UnreadableImageError) as error:
        source.load(source.names.index("passwords.jpg"))
    assert "root" not in str(error.value)


# --- what the package never calls -----------------------------------------------------------------------------------

DANGEROUS = {
    *("pickle.load", "pickle.loads", "eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"),
    *("yaml.full_load", "shutil.unpack_archive", "marshal.loads", "joblib.load", "dill.load", "dill.loads"),
}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def risks(source: str) -> list[str]:
    """Calls that could run code from a file, or a shell."""
    found = []
    for name, call in calls(ast.parse(source)):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in DANGEROUS or name.endswith(".extractall") or keywords.get("shell") == "True":
            found.append(name)
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append(name)
        if keywords.get("allow_pickle", "False") != "False" or keywords.get("trust_remote_code", "False") != "False":
            found.append(name)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_call_that_could_run_a_file(path: Path) -> None:
    assert risks(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "archive.extractall(folder)",
        "eval(text)",
    ],
)
def test_such_a_call_would_be_seen(source: str) -> None:
    assert risks(source) != []


def test_an_empty_folder_of_checkpoints_is_no_error(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    with pytest.raises((InputError, NoValidCheckpointError)):
        cjepa.load_encoder(run)
