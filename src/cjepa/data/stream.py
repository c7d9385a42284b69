"""Training batches as a pure function of (seed, step, slot): any worker, rank or restart gives the same ones."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cjepa.data.config import DataConfig
from cjepa.data.crops import DRAWS, random_crop
from cjepa.data.decoding import UnreadableImageError
from cjepa.data.order import sample_at
from cjepa.data.source import ImageSource
from cjepa.errors import InputError
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Batch, MaskSampler, Unreadable

_REPLACEMENTS = 256
"""Images tried for one slot. Where one in two is unreadable, all fail in one of 10^77 slots."""
_WORKER_PATIENCE = 600
"""Seconds to wait for a batch before a worker counts as hung, on a file system that went away for instance."""


class TrainingStream(Dataset[Batch]):
    """The batch of every step, or the part of it that one rank trains on: slots first_slot .. + slots - 1.

    Slot s of step t holds the sample at position t * batch_size + s of the endless order of epochs (order.py). If it
    is unreadable it is replaced by the next of the same epoch that is not, and reported in Batch.unreadable.
    """

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        sampler: MaskSampler,
        batch_size: int,
        seed: int,
        first_slot: int = 0,
        slots: int | None = None,
    ) -> None:
        if batch_size < 2:
            raise InputError(f"batch size {batch_size}: VICReg compares the images of a batch; use at least 2")
        if batch_size > len(source):
            raise InputError(
                f"batch size {batch_size} exceeds the {len(source)} training images; use {len(source)} or fewer"
            )
        self.source = source
        self.config = config
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        self.first_slot = first_slot
        self.slots = batch_size - first_slot if slots is None else slots
        assert 0 <= first_slot < first_slot + self.slots <= batch_size, (first_slot, self.slots, batch_size)

    def __getitem__(self, step: int) -> Batch:
        positions = step * self.batch_size + self.first_slot + np.arange(self.slots, dtype=np.int64)
        samples = sample_at(self.seed, positions, len(self.source))
        draws = uniform_rows(self.seed, Stream.CROPS, step, self.first_slot, self.slots, DRAWS).tolist()
        images = np.empty((self.slots, 3, *self.config.size), dtype=np.uint8)
        unreadable: list[Unreadable] = []
        for slot in range(self.slots):
            image, samples[slot] = self._load(int(positions[slot]), int(samples[slot]), unreadable)
            images[slot] = random_crop(
                image,
                draws[slot],
                self.config.size,
                self.config.crop_scale,
                self.config.crop_ratio,
                self.config.flip,
            )
        masks = self.sampler(step, self.first_slot, self.slots)
        return Batch(torch.from_numpy(images), masks, torch.from_numpy(samples), tuple(unreadable))

    def _load(self, position: int, sample: int, unreadable: list[Unreadable]) -> tuple[Image.Image, int]:
        """The image of a sample, or of the first readable one after it, and that one's index."""
        tries = min(_REPLACEMENTS, len(self.source))
        for attempt in range(tries):
            if attempt:
                sample = self._sample_after(position, attempt)
            try:
                return self.source.load(sample), sample
            except UnreadableImageError as error:
                unreadable.append(Unreadable(sample, self.source.names[sample], str(error)))
        last = unreadable[-1]
        raise InputError(
            f"data: {tries} images in a row could not be read, the last one {last.name}: {last.reason}; "
            "check the folder and the disk"
        )

    def _sample_after(self, position: int, distance: int) -> int:
        """The sample `distance` places further on in the same epoch, continued at its start."""
        epoch, offset = divmod(position, len(self.source))
        moved = epoch * len(self.source) + (offset + distance) % len(self.source)
        return int(sample_at(self.seed, np.array([moved]), len(self.source))[0])


class _Caught(Dataset[Batch | InputError]):
    """A stream that hands its errors over as values: raised in a worker, their message would be a traceback."""

    def __init__(self, stream: TrainingStream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            return self.stream[step]
        except InputError as error:
            return error


def iterate(stream: TrainingStream, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The batches of steps start .. stop - 1, decoded by this many processes that live as long as the iterator.

    Raises RuntimeError when a worker dies or gives no batch for ten minutes.
    """
    if start >= stop:
        return
    with warnings.catch_warnings():  # torch advises against more workers than cores; the user chose them
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        batches = iter(
            DataLoader(
                _Caught(stream),
                batch_size=None,
                sampler=range(start, stop),
                num_workers=workers,
                pin_memory=torch.cuda.is_available(),
                timeout=_WORKER_PATIENCE if workers else 0,
                worker_init_fn=_leave_signals_to_the_main_process,
            )
        )
    try:
        for batch in batches:
            if isinstance(batch, InputError):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers now; a traceback would keep them alive with this frame


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """Ctrl-C and a scheduler signal every process of a job; workers must go on while the main one saves."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the sender of a signal cannot be told
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_request_of, args=(os.getppid(),), daemon=True).start()


def _end_on_request_of(main_process: int) -> None:
    """Ends the worker at a SIGTERM of the main process, which Python sends at its exit, and at no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
        pass
    os._exit(0)
