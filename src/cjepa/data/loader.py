"""Worker processes that load images, and what becomes of them when one dies, hangs, or is told to stop.

torch's DataLoader does the work. Added are: errors that name worker and image, within a stated time; a SIGCHLD handler
that cannot raise in the middle of a training step; and workers that leave signals to the main process.
"""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from cjepa.errors import InputError, WorkerError

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds to wait for a batch before a worker counts as hung, on a file system that went away for instance."""
_LOOK_EVERY = 2
"""Seconds after which a waiting process looks whether its workers are alive."""
_A_MOMENT = 1.0
"""Seconds that a worker whose connection broke has to be seen dead."""
_NOTHING = -1
_MORE_SHARED_MEMORY = "use data.workers=0, or make it larger (docker run --shm-size=8g)"
_LIKELY_CAUSES: dict[int, str] = {
    signal.SIGKILL: "most likely the machine ran out of memory: use fewer data.workers",
    signal.SIGBUS: f"most likely /dev/shm is full: {_MORE_SHARED_MEMORY}",
    signal.SIGSEGV: "most likely a fault in an image library: move that image away",
}


def image_of(names: Sequence[str]) -> Callable[[int], str]:
    """What messages call an image: its name and its index."""
    return lambda index: f"{names[index]} (image {index})"


class Notes:
    """What each worker is reading, in memory that all processes share: a dead worker cannot say it any more."""

    def __init__(self, workers: int) -> None:
        self._processes = multiprocessing.RawArray("q", [_NOTHING] * max(workers, 1))
        self._samples = multiprocessing.RawArray("q", [_NOTHING] * max(workers, 1))

    def begin(self, worker: int) -> None:
        """Note which process a worker is."""
        self._processes[worker] = os.getpid()

    @contextmanager
    def reading(self, sample: int) -> Iterator[None]:
        """Note what this process is reading; the note stays when it dies inside."""
        info = get_worker_info()
        worker = 0 if info is None else info.id
        self._samples[worker] = sample
        try:
            yield
        finally:
            self._samples[worker] = _NOTHING

    def worker_of(self, process: int | None) -> int | None:
        """The number of the worker that is this process."""
        return next((worker for worker, each in enumerate(self._processes) if each == process), None)

    def describe(self, worker: int, name: Callable[[int], str]) -> str:
        """What a worker is reading, in words."""
        sample = self._samples[worker]
        return "between two images" if sample == _NOTHING else f"while reading {name(sample)}"

    def busy(self) -> list[int]:
        """The workers that are reading something."""
        return [worker for worker, sample in enumerate(self._samples) if sample != _NOTHING]


def load(
    dataset: Dataset[T],
    order: Iterable[int] | None,
    notes: Notes,
    name: Callable[[int], str],
    *,
    workers: int,
    batch_size: int | None = None,
    patience: float = PATIENCE,
    pinned: bool = False,
) -> Generator[T, None, None]:
    """The items of a dataset in an order (or in its own), batched if a size is given.

    notes: the ones that the dataset writes what it reads into; name: what the message calls a sample. Without workers
    everything happens in this process. Raises WorkerError when a worker dies, or when no batch comes for `patience`
    seconds; InputErrors of the dataset come through as they are.
    """
    with _no_raising_at_a_childs_death(), warnings.catch_warnings():
        # torch advises against more workers than cores; the user chose them
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        before = set(multiprocessing.active_children())
        items = iter(
            DataLoader(
                _Caught(dataset),
                batch_size,
                sampler=order,
                num_workers=workers,
                collate_fn=_collate if batch_size is not None else _as_it_is,
                pin_memory=pinned,
                timeout=min(_LOOK_EVERY, patience) if workers else 0,
                worker_init_fn=partial(_begin_worker, os.getpid(), notes) if workers else None,
                # A loader without a generator draws its seed from the global one, which loading must not change.
                generator=torch.Generator().manual_seed(0),
            )
        )
        processes = [child for child in multiprocessing.active_children() if child not in before]
    try:
        while True:
            item = _next(items, processes, notes, name, patience)
            if item is None:
                return
            if isinstance(item, InputError | WorkerError):
                raise item
            yield item
    finally:
        for process in processes:
            if notes.worker_of(process.pid) in notes.busy():
                process.kill()  # a hung one would be waited for; one that reads holds nothing that others need
        del items  # ends the workers now; a traceback would keep them alive with this frame


def _next(
    items: Iterator[Any], processes: list[BaseProcess], notes: Notes, name: Callable[[int], str], patience: float
) -> Any:
    """The next item, None at the end, or what ended the workers: as a value, since torch's error would keep them."""
    started = monotonic()
    while True:
        try:
            return next(items, None)
        except (ConnectionError, EOFError):  # it died with a batch that was not fetched yet
            dead = [process for process in processes if not _lives_on(process)]
            if not dead:
                raise
            return _death(dead[0], notes, name)
        except RuntimeError as error:
            dead = [process for process in processes if not process.is_alive()]
            if dead and "DataLoader worker" in str(error):
                return _death(dead[0], notes, name)
            if "No space left on device" in str(error):
                return WorkerError(f"/dev/shm is full: {_MORE_SHARED_MEMORY}")
            if "DataLoader timed out" not in str(error):
                raise
            if monotonic() - started >= patience:
                return _hang(notes, name, patience)


def _lives_on(process: BaseProcess) -> bool:
    """False for a process that has ended, or is about to."""
    process.join(_A_MOMENT)
    return process.is_alive()


def _death(process: BaseProcess, notes: Notes, name: Callable[[int], str]) -> WorkerError:
    worker = notes.worker_of(process.pid)
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    cause = _LIKELY_CAUSES.get(-code, "its own message is above, if it had one")
    if worker is None:
        return WorkerError(f"a data worker (process {process.pid}) {how} before it read anything; {cause}")
    reading = notes.describe(worker, name)
    return WorkerError(f"data worker {worker} (process {process.pid}) {how} {reading}; {cause}")


def _hang(notes: Notes, name: Callable[[int], str], patience: float) -> WorkerError:
    busy = [f"worker {worker} {notes.describe(worker, name)}" for worker in notes.busy()]
    return WorkerError(
        f"no batch came from the data workers for {patience:g} seconds (data.worker_timeout): "
        f"{', '.join(busy) or 'none of them is reading an image'}; check the disk or network that the images are on, "
        f"or, where none is reading, whether /dev/shm is full: {_MORE_SHARED_MEMORY}"
    )


class Noted(Dataset[T]):
    """A dataset whose items are noted by their index while they are made: images, or batches of a step."""

    def __init__(self, dataset: Dataset[T], notes: Notes) -> None:
        self.dataset = dataset
        self.notes = notes

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> T:
        with self.notes.reading(index):
            return self.dataset[index]


class _Caught(Dataset[Any]):
    """A dataset that hands its errors over as values: raised in a worker, their message would be a traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except InputError as error:
            return error


def _as_it_is(item: T) -> T:
    """torch's own conversion would make lists of tuples."""
    return item


def _collate(items: list[Any]) -> Any:
    errors = [item for item in items if isinstance(item, InputError)]
    return errors[0] if errors else default_collate(items)


@contextmanager
def _no_raising_at_a_childs_death() -> Iterator[None]:
    """Undo the SIGCHLD handler that torch installs with its first loader, which raises wherever the process is.

    Between the optimizer and the moving average, for instance; a dead worker is noticed at the next wait anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if previous is None else previous)


def _begin_worker(main_process: int, notes: Notes, worker: int) -> None:
    """Ctrl-C, a scheduler and a closed terminal signal every process of a job; workers go on, the main one saves."""
    torch.set_num_threads(1)
    notes.begin(worker)
    sys.excepthook = _silent_about_a_main_process_that_left
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the sender of a signal cannot be told
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_request_of, args=(main_process,), daemon=True).start()


def _silent_about_a_main_process_that_left(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A signal may end the main process while it fetches a batch; the worker's part of that is no fault to print."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_on_request_of(main_process: int) -> None:
    """Ends the worker at a SIGTERM of the main process, which Python sends at its exit, and at no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
        pass
    os._exit(0)
