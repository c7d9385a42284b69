"""Workers that die or hang are named with the image they were at; every start method gives the same batches."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cjepa.data import DataConfig, DemoConfig, EvaluationImages, TrainingStream, iterate
from cjepa.errors import WorkerError
from cjepa.evaluation.features import extract_features
from cjepa.types import Masks

ROOT = Path(__file__).parents[2]


class Dangerous:
    """Sixteen grey images, one of which does something to the process that loads it."""

    def __init__(self, victim: int, deed: str) -> None:
        self.names = [f"folder/{index:02d}.png" for index in range(16)]
        self.labels = np.arange(16, dtype=np.int64) % 2
        self.classes = ("a", "b")
        self.fingerprint = ""
        self.victim = victim
        self.deed = deed

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        if index == self.victim:
            match self.deed:
                case "hang":
                    time.sleep(600)
                case "exit":
                    os._exit(7)
                case name:
                    os.kill(os.getpid(), signal.Signals[name])
                    time.sleep(600)
        return Image.new("RGB", (16, 16), (index, index, index))


def masks(step: int, first: int, count: int) -> Masks:
    return Masks(torch.zeros(count, 1, dtype=torch.long), torch.zeros(count, 1, 1, dtype=torch.long))


def stream(source: Dangerous) -> TrainingStream:
    return TrainingStream(source, DataConfig(source=DemoConfig(), image_size=16), masks, 4, 0)


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("SIGKILL", r"was killed by SIGKILL while reading folder/11.png \(image 11\); most likely the machine ran out"),
        ("SIGBUS", r"was killed by SIGBUS while reading folder/11.png .* /dev/shm is full: use data.workers=0"),
        ("SIGSEGV", r"was killed by SIGSEGV while reading folder/11.png .* fault in an image library"),
        ("exit", r"ended with exit code 7 while reading folder/11.png"),
    ],
)
def test_a_dead_worker_is_named_with_its_image_and_the_likely_cause(deed: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match=rf"^data worker [01] \(process \d+\) {message}") as error:
        list(iterate(stream(Dangerous(11, deed)), 0, 8, 2))
    assert time.monotonic() - started < 30
    assert error.value.exit_code == 75
    assert multiprocessing.active_children() == []


def test_a_hung_worker_is_named_with_its_image_within_the_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"for 1.5 seconds .*: worker [01] while reading folder/11.png \(image 11\)"):
        list(iterate(stream(Dangerous(11, "hang")), 0, 8, 2, patience=1.5))
    assert 1.5 <= time.monotonic() - started < 30
    assert multiprocessing.active_children() == [], "and is not waited for"


@pytest.mark.parametrize(("deed", "message"), [("SIGKILL", "killed by SIGKILL while reading"), ("hang", "no batch")])
def test_the_same_in_an_evaluation(deed: str, message: str) -> None:
    images = EvaluationImages(Dangerous(11, deed), DataConfig(source=DemoConfig(), image_size=16))
    with pytest.raises(WorkerError, match=rf"{message}.*folder/11.png"):
        extract_features(
            torch.nn.Flatten(2),
            images,
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
            device=torch.device("cpu"),
            batch_size=4,
            workers=1,
            patience=1.5,
        )


class Signalled(Dangerous):
    """Every image signals the process that loads it, as a terminal or a scheduler does with all of a job."""

    def load(self, index: int) -> Image.Image:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return super().load(index)


def test_workers_go_on_while_the_main_process_decides() -> None:
    assert len(list(iterate(stream(Signalled(-1, "")), 0, 4, 2))) == 4


def test_no_handler_is_left_that_raises_when_a_child_dies() -> None:
    """torch's would raise in the middle of a step, between the optimizer and the moving average."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iterate(stream(Dangerous(-1, "")), 0, 4, 1)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    batches.close()


SCRIPT = """
import hashlib, multiprocessing, sys
from cjepa.config.presets import resolve
from cjepa.build import build_stream
from cjepa.data import iterate, open_source

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    config = resolve(sys.argv[2], [f"data={sys.argv[3]}"])
    stream = build_stream(config, open_source(config.data, 0))
    digest = hashlib.sha256()
    for batch in iterate(stream, 0, 4, int(sys.argv[4])):
        for tensor in (batch.images, batch.samples, batch.masks.context, batch.masks.targets):
            digest.update(tensor.numpy().tobytes())
    print(digest.hexdigest())
    worker_ends = iterate(stream, 0, 1000, 1)
    next(worker_ends)
    sys.exit(0)  # with a worker running: it must end when it is told to
"""


def test_every_start_method_gives_the_same_batches_and_ends(tmp_path: Path) -> None:
    from tests.tiny_runs import write_config, write_images

    images, config = write_images(tmp_path / "images"), write_config(tmp_path)
    (tmp_path / "batches.py").write_text(SCRIPT)
    digests = {}
    for method, workers in (("fork", 0), ("fork", 2), ("forkserver", 1), ("spawn", 1)):
        answer = subprocess.run(
            [sys.executable, str(tmp_path / "batches.py"), method, str(config), str(images), str(workers)],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        )
        assert answer.returncode == 0, answer.stderr[-3000:]
        digests[method, workers] = answer.stdout
    assert len(set(digests.values())) == 1, digests
