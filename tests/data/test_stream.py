import hashlib
import multiprocessing
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cjepa.data import DataConfig, DemoConfig, FolderConfig, TrainingStream, UnreadableImageError, iterate, open_source
from cjepa.data.arrays import ArraySource
from cjepa.data.order import sample_at
from cjepa.data.source import ImageSource
from cjepa.errors import InputError
from cjepa.types import Batch, Masks

BATCH_SIZE = 8


def sampler(step: int, first: int, count: int) -> Masks:
    """Masks that tell step and slot, so that wrong arguments show."""
    slots = torch.arange(first, first + count)
    return Masks(
        torch.stack([slots, slots + step], dim=1), slots[:, None, None] * torch.ones(1, 2, 3, dtype=torch.long)
    )


def stream_of(source: ImageSource, first_slot: int = 0, slots: int | None = None, **changes: object) -> TrainingStream:
    config = DataConfig(source=DemoConfig(), image_size=16, **changes)
    return TrainingStream(source, config, sampler, BATCH_SIZE, 7, first_slot, slots)


@pytest.fixture
def source(colours: Path) -> ImageSource:
    return open_source(DataConfig(source=FolderConfig(path=colours)), 0).train


def digest(batches: Iterable[Batch]) -> str:
    result = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.images, batch.samples, batch.masks.context, batch.masks.targets):
            result.update(tensor.numpy().tobytes())
        result.update(repr(batch.unreadable).encode())
    return result.hexdigest()


def test_batches_are_identical_for_any_number_of_workers(source: ImageSource, colours: Path) -> None:
    (colours / source.names[5]).write_bytes(b"broken")
    digests = {digest(iterate(stream_of(source), 2, 9, workers)) for workers in (0, 1, 2, 3)}
    assert digests == {digest(stream_of(source)[step] for step in range(2, 9))}


def test_a_batch_is_what_the_order_says(source: ImageSource) -> None:
    for step in (0, 2, 3):
        batch = stream_of(source)[step]
        positions = step * BATCH_SIZE + np.arange(BATCH_SIZE)
        assert batch.samples.tolist() == sample_at(7, positions, 24).tolist()
        assert batch.images.shape == (BATCH_SIZE, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert batch.masks.context[:, 1].tolist() == [step + slot for slot in range(BATCH_SIZE)]
        assert batch.unreadable == ()
        for image, sample in zip(batch.images, batch.samples.tolist(), strict=True):
            expected = torch.tensor(source.load(sample).getpixel((0, 0)), dtype=torch.uint8)
            assert (image == expected[:, None, None]).all()


def noisy_source() -> ArraySource:
    """Ten images in which every crop looks different."""
    noise = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    return ArraySource(noise, np.zeros(10, np.int64), ("a",))


def test_ranks_together_give_the_whole_batch() -> None:
    source = noisy_source()
    whole = stream_of(source)[4]
    parts = [stream_of(source, first, slots)[4] for first, slots in ((0, 3), (3, 1), (4, 4))]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.samples for part in parts]), whole.samples)
    assert torch.equal(torch.cat([part.masks.context for part in parts]), whole.masks.context)


def test_nothing_is_dropped_at_the_end_of_an_epoch(source: ImageSource) -> None:
    samples = torch.cat([stream_of(source)[step].samples for step in range(9)])
    assert torch.bincount(samples).tolist() == [3] * 24
    seventeen = ArraySource(np.zeros((17, 3, 20, 20), np.uint8), np.zeros(17, np.int64), ("a",))
    samples = torch.cat([stream_of(seventeen)[step].samples for step in range(17)])
    assert torch.bincount(samples).tolist() == [BATCH_SIZE] * 17


def test_crops_differ_between_slots_and_epochs() -> None:
    source = noisy_source()
    source.images[:] = source.images[0]
    stream = stream_of(source)
    images = torch.cat([stream[0].images, stream[1].images]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 16


@pytest.mark.parametrize("position", [10, 23], ids=["in the middle", "at the end of its epoch"])
def test_an_unreadable_image_is_replaced_by_the_next_of_its_epoch(
    source: ImageSource, colours: Path, position: int
) -> None:
    before = [stream_of(source)[step] for step in range(6)]
    broken = int(before[position // BATCH_SIZE].samples[position % BATCH_SIZE])
    (colours / source.names[broken]).write_bytes(b"broken")
    after = [stream_of(source)[step] for step in range(6)]
    met = 0
    for step, (old, new) in enumerate(zip(before, after, strict=True)):
        hit = (old.samples == broken).nonzero().flatten().tolist()
        met += len(hit)
        assert [(report.index, report.name) for report in new.unreadable] == [(broken, source.names[broken])] * len(hit)
        for slot in range(BATCH_SIZE):
            if slot not in hit:
                assert new.samples[slot] == old.samples[slot]
                assert torch.equal(new.images[slot], old.images[slot])
                continue
            epoch, offset = divmod(step * BATCH_SIZE + slot, 24)
            following = sample_at(7, np.array([epoch * 24 + (offset + 1) % 24]), 24)[0]
            assert new.samples[slot] == following
            colour = torch.tensor(source.load(int(following)).getpixel((0, 0)), dtype=torch.uint8)
            assert (new.images[slot] == colour[:, None, None]).all()
    assert met == 2
    assert "not one of" in after[position // BATCH_SIZE].unreadable[0].reason


def test_neighbours_in_the_order_may_be_unreadable_too(source: ImageSource, colours: Path) -> None:
    for name in source.names[:20]:
        (colours / name).write_bytes(b"")
    batch = stream_of(source)[0]
    assert (batch.samples >= 20).all()
    assert all(report.index < 20 for report in batch.unreadable)
    assert digest([batch]) == digest([stream_of(source)[0]])


@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_data_end_with_a_plain_message(source: ImageSource, colours: Path, workers: int) -> None:
    for name in source.names:
        (colours / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"^data: 24 images in a row could not be read, the last one class-"):
        next(iterate(stream_of(source), 0, 3, workers))


class Unreliable:
    """A large source in which nothing can be read."""

    def __init__(self) -> None:
        self.names = [str(index) for index in range(100_000)]
        self.labels = np.full(100_000, -1)
        self.classes: tuple[str, ...] = ()
        self.fingerprint = ""

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        raise UnreadableImageError("gone")


def test_tries_are_limited() -> None:
    with pytest.raises(InputError, match=r"256 images in a row .* gone; check the folder"):
        stream_of(Unreliable())[0]


@pytest.mark.parametrize(("batch_size", "message"), [(1, "=2 or more"), (0, "=2 or more"), (25, "24 or fewer")])
def test_impossible_batch_sizes(source: ImageSource, batch_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingStream(source, DataConfig(source=DemoConfig()), sampler, batch_size, 0)


def test_an_empty_range_starts_no_worker(source: ImageSource) -> None:
    assert list(iterate(stream_of(source), 5, 5, 2)) == []
    assert multiprocessing.active_children() == []


def test_workers_survive_the_signals_of_a_scheduler_and_end_with_the_iterator(source: ImageSource) -> None:
    batches = iterate(stream_of(source), 0, 40, 2)
    received = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for name in ("INT", "USR1", "TERM", "TERM"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    received.extend(batches)
    assert digest(received) == digest(iterate(stream_of(source), 0, 40, 0))
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()


def test_workers_end_when_the_main_process_says_so(source: ImageSource) -> None:
    """Python terminates and then awaits its children at exit: one that ignored it would hang the run for ever."""
    batches = iterate(stream_of(source), 0, 1000, 1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def test_workers_end_when_the_iterator_is_dropped(source: ImageSource) -> None:
    batches = iterate(stream_of(source), 0, 1000, 1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    del batches
    worker.join(20)
    assert not worker.is_alive()


def test_configured_size_and_flip_are_used() -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8), (16, 3, 32, 32))
    source = ArraySource(np.ascontiguousarray(ramp), np.zeros(16, np.int64), ("a",))
    stream = stream_of(source, flip=True)
    stream.config = stream.config.model_copy(update={"image_size": (8, 24)})
    images = torch.cat([stream[step].images for step in range(4)])
    assert images.shape == (32, 3, 8, 24)
    mirrored = (images[:, 0, 0, 0] > images[:, 0, 0, -1]).sum()
    assert 6 <= mirrored <= 26


def test_memory_is_pinned_for_a_gpu_that_is_used_not_for_one_that_is_there(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    class Noting(DataLoader[Batch]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            asked.append(options["pin_memory"])
            super().__init__(*arguments, **options | {"pin_memory": False})

    monkeypatch.setattr("cjepa.data.loader.DataLoader", Noting)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for pinned in (False, True):
        list(iterate(stream_of(source), 0, 1, 0, pinned=pinned))
    assert asked == [False, True]
