"""Continuing under other circumstances, dumps, hangs, what doctor says, and what must not get out of a run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cjepa import runs
from cjepa.cli import app
from cjepa.runs import pretraining
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.metrics import read_metrics
from cjepa.training.watchdog import Watchdog
from tests.tiny_runs import write_config, write_images

ROOT = Path(__file__).parents[2]


def cjepa(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "draw_pictures", lambda runs, folder: [])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    before, runs.draw_pictures = runs.draw_pictures, lambda *_: []  # type: ignore[assignment]
    result = cjepa("pretrain", write_config(folder), f"data={images}", "--out", folder / "run")
    runs.draw_pictures = before
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


# --- changes --------------------------------------------------------------------------------------------------------


def test_a_change_is_refused_unless_it_is_named(run: Path, finished: Path, images: Path) -> None:
    command = ("pretrain", finished / "tiny.yaml", f"data={images}", "training.epochs=2", "seed=0", "--out", run)
    refused = cjepa(*command)
    assert refused.exit_code == 2
    assert "training.epochs: 1.0 -> 2.0" in said(refused)
    assert "--allow-change KEY" in said(refused)
    other = cjepa(*command, "objective.beta=0.2", "--allow-change", "training.epochs")
    assert other.exit_code == 2
    assert "objective.beta: 0.1 -> 0.2" in said(other)
    assert "training.epochs" not in said(other).partition("Continue it")[0].partition("configuration:")[2]
    allowed = cjepa(*command, "--allow-change", "training")
    assert allowed.exit_code == 0, allowed.output
    assert "changed on request: training.epochs: 1.0 -> 2.0" in allowed.output
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 6
    assert "changed on request: training.epochs" in (run / "train.log").read_text()


@pytest.mark.parametrize(
    ("key", "said_of_it"),
    [
        ("training.epoch", "unknown key training.epoch; did you mean training.epochs?"),
        ("image", "unknown key image; did you mean images?"),
        ("training.epochs=2", "did you mean training.epochs?"),
    ],
)
def test_a_change_of_a_key_that_does_not_exist_is_refused(
    finished: Path, images: Path, tmp_path: Path, key: str, said_of_it: str
) -> None:
    """Also where nothing differs: the slip would show only when it does."""
    command = ("pretrain", finished / "tiny.yaml", f"data={images}", "--out", tmp_path / "run")
    refused = cjepa(*command, "--allow-change", "training", "--allow-change", key)
    assert refused.exit_code == 2
    assert "--allow-change: unknown key" in said(refused)
    assert said_of_it in said(refused)
    assert not (tmp_path / "run").exists()


def test_what_is_measured_besides_may_change(run: Path, finished: Path, images: Path) -> None:
    """Runs of versions that measured less can be continued."""
    command = ("pretrain", finished / "tiny.yaml", f"data={images}", "--out", run)
    more = cjepa(*command, "monitor.evaluations=[{name: linear, inverse_regularisation: [0.1]}]")
    assert more.exit_code == 0, more.output


def test_other_images_are_allowed_by_name(run: Path, finished: Path, images: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(images, tmp_path / "moved"))
    (moved / "a" / "0000.png").unlink()
    command = ("pretrain", finished / "tiny.yaml", f"data={moved}", "--out", run)
    refused = cjepa(*command)
    assert refused.exit_code == 2
    assert "--allow-change images" in said(refused)
    assert cjepa(*command, "--allow-change", "images").exit_code == 0


def test_images_that_lost_their_labels_are_no_other_images(run: Path, finished: Path, tmp_path: Path) -> None:
    bare = write_images(tmp_path / "bare", ("",), 48)
    command = ("pretrain", finished / "tiny.yaml", f"data={bare}", "--out", run, "--allow-change", "images")
    result = cjepa(*command, "--allow-change", "data.source")
    assert result.exit_code == 2, result.output
    assert "is judged by knn_20_centred so far, and these images would have it judged by crop_retrieval" in said(result)


def test_another_architecture_is_refused_by_the_tensor_that_differs(run: Path, finished: Path, images: Path) -> None:
    result = cjepa(
        "pretrain",
        finished / "tiny.yaml",
        f"data={images}",
        "model.encoder.width=64",
        "--out",
        run,
        "--allow-change",
        "model",
    )
    assert result.exit_code == 2
    assert re.search(r"encoder\.safetensors: \S+ has shape \[.*32.*\] instead of \[.*64.*\]", said(result))


def test_other_versions_and_threads_are_recorded_and_told(
    run: Path, finished: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = json.loads((run / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert {"torch", "cjepa", "pillow", "device", "threads", "ranks", "micro_batch"} == set(state["made_with"])
    assert state["seed"] == 0
    now = state["made_with"] | {"torch": "9.9"}
    monkeypatch.setattr(pretraining, "essentials", lambda device: now)
    result = cjepa("pretrain", finished / "tiny.yaml", f"data={images}", "--out", run)
    assert result.exit_code == 0
    assert "the result may differ in its last bits" in said(result)
    assert f"torch: {state['made_with']['torch']} -> 9.9" in said(result)


def test_other_parts_of_the_batch_are_told(
    run: Path, finished: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the config leaves them open, they depend on the memory that is there."""
    monkeypatch.setattr("cjepa.build.device_memory", lambda _: 0.0)
    result = cjepa("pretrain", finished / "tiny.yaml", f"data={images}", "--out", run)
    assert result.exit_code == 0
    assert "the result may differ in its last bits" in said(result)
    assert re.search(r"micro_batch: \d+ -> 1\b", said(result))


# --- divergence -----------------------------------------------------------------------------------------------------


def test_a_dump_repeats_what_ended_the_run(finished: Path, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    wild = ["training.optimizer.learning_rate.peak=1e30", "training.evaluate_every=50", "training.epochs=20"]
    ended = cjepa("pretrain", finished / "tiny.yaml", f"data={images}", *wild, "--out", run)
    assert ended.exit_code == 3, ended.output
    [dump] = (run / "diverged").iterdir()
    assert str(dump) in ended.output.replace("\n", "")
    again = cjepa("replay", run)
    assert again.exit_code == 0, again.output
    lines = again.output.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 10
    assert sum("now: loss" in line and "(the same)" in line for line in lines) == 10
    assert "not finite in" in again.output
    looked = cjepa("doctor", run)
    assert f"left a dump; `cjepa replay {run}`" in said(looked)
    assert max(map(len, again.output.splitlines())) <= 120


def test_replay_needs_a_dump(run: Path) -> None:
    result = cjepa("replay", run)
    assert result.exit_code == 2
    assert "has no dump of a divergence" in said(result)


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_doctor_takes_no_file_of_a_file_system_for_what_a_save_left(run: Path) -> None:
    for name in (".nfs000000000123", ".DS_Store"):
        (run / "checkpoints" / name).write_text("")
    assert not [note for note in runs.diagnose(run).notes if "a killed save left" in note]
    (run / "checkpoints" / ".tmp-step-00000009-ab").mkdir()
    assert [note for note in runs.diagnose(run).notes if "a killed save left 1 folders" in note]


def test_doctor_tells_what_a_run_met(run: Path) -> None:
    path = run / "checkpoints"
    newest = CheckpointStore(path).newest()
    assert newest is not None
    progress = newest.state["progress"] | {"unreadable": [1, 2], "skipped": 3, "spikes": 4, "left_out": [7, 8]}
    CheckpointStore(path).amend(newest, newest.state | {"progress": progress}, {0})
    (path / ".tmp-step-00000004-00000000").mkdir()
    (run / "diverged").mkdir()
    (run / "diverged" / "step-00000002").mkdir()
    output = said(cjepa("doctor", run))
    assert f"2 unreadable images were replaced; they are in {run}/unreadable.jsonl" in output
    assert "3 steps were skipped and 4 were spikes" in output
    assert "steps left out after spikes: 7, 8" in output
    assert "made with cjepa" in output
    assert "a killed save left 1 folders behind" in output
    assert "gave up at step 2 and left a dump; damaged: manifest.json is missing" in output


# --- a hang ---------------------------------------------------------------------------------------------------------


def test_a_run_that_hangs_prints_where_and_leaves(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from cjepa.training.watchdog import Watchdog\n"
        "def waiting_for_a_disk():\n"
        "    time.sleep(600)\n"
        "with Watchdog(1.0) as dog:\n"
        "    for _ in range(4):\n"
        "        time.sleep(0.4)\n"
        "        dog.alive()\n"
        "    print('lived', flush=True)\n"
        "    waiting_for_a_disk()\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert answer.returncode == 75
    assert answer.stdout == "lived\n"
    assert "nothing was done for 1 seconds (training.hang_after)" in answer.stderr
    assert "in waiting_for_a_disk" in answer.stderr


def test_no_watchdog_is_left_behind() -> None:
    for seconds in (0.2, None):
        with Watchdog(seconds) as dog:
            dog.alive()
    time.sleep(0.6)


# --- what gets out --------------------------------------------------------------------------------------------------

NO_NETWORK = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("the network was used")
for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
"""


def test_nothing_uses_the_network_leaks_secrets_or_opens_the_folder_to_others(
    tmp_path: Path, finished: Path, images: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "cjepa",
        "pretrain",
        str(finished / "tiny.yaml"),
        f"data={images}",
        "--out",
        str(run),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")]),
        "WANDB_API_KEY": "s3cr3t-1",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-2",
        "HF_TOKEN": "s3cr3t-3",
    }
    shell = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    answer = subprocess.run([*shell, *command], capture_output=True, text=True, check=False, env=environment)
    assert answer.returncode == 0, answer.stderr
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in [run, *run.rglob("*")] if path.stat().st_mode & 0o077] == []
    assert [path for path in files if b"s3cr3t" in path.read_bytes()] == []


# --- torchrun -------------------------------------------------------------------------------------------------------


def test_torchrun_passes_the_signal_on_and_waits_for_the_save(tmp_path: Path, images: Path) -> None:
    """The line of docs/reliability.md, with one process."""
    config, run = write_config(tmp_path), tmp_path / "run"
    line = re.search(r"torchrun (.*) -m cjepa", (ROOT / "docs" / "reliability.md").read_text())
    assert line is not None
    arguments = ["pretrain", str(config), f"data={images}", "training.epochs=2000", "training.evaluate_every=2000"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *line[1].split(),
        "-m",
        "cjepa",
        *arguments,
        "--out",
        str(run),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 200
        while not ((run / "metrics.jsonl").exists() and '"train"' in (run / "metrics.jsonl").read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        subprocess.run(["kill", "-USR1", str(process.pid)], check=True)
        output, _ = process.communicate(timeout=100)
    assert "stopped by SIGUSR1 after step" in output
    newest = CheckpointStore(run / "checkpoints").newest()
    assert newest is not None
    assert f"after step {newest.step} of" in output
