"""Features of several layers, and features that lie on the disk."""

import errno
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cjepa.errors import InputError
from cjepa.evaluation import storage
from cjepa.evaluation.features import LabelledFeatures, extract_features
from cjepa.evaluation.knn import KnnConfig, knn_accuracy, nearest
from cjepa.evaluation.pooling import PoolingConfig, pooled
from cjepa.evaluation.work import Silent, Work
from cjepa.models import EncoderConfig, VisionTransformer
from tests.evaluation.labelled_colours import labelled_colours

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CPU = torch.device("cpu")


@pytest.fixture
def encoder() -> VisionTransformer:
    torch.manual_seed(0)
    transformer = VisionTransformer(EncoderConfig(width=16, depth=3, heads=2, patch_size=4)).eval()
    transformer.initialise(torch.Generator().manual_seed(0))
    nn.init.normal_(transformer.norm.weight)  # so that its place matters
    return transformer


def hooked(encoder: VisionTransformer, images: torch.Tensor) -> list[torch.Tensor]:
    """What each block gives, seen from outside."""
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: outputs.append(call[2])) for block in encoder.blocks]
    encoder(images)
    for hook in hooks:
        hook.remove()
    return outputs


def test_last_layers_are_what_the_blocks_give(encoder: VisionTransformer) -> None:
    images = torch.randn(2, 3, 8, 12)
    blocks = hooked(encoder, images)
    for count in (1, 2, 3):
        torch.testing.assert_close(encoder.last_layers(images, count, norm=False), tuple(blocks[-count:]))
    normed = encoder.last_layers(images, 2)
    torch.testing.assert_close(normed[-1], encoder(images))
    torch.testing.assert_close(normed[0], encoder.norm(blocks[1]))
    with pytest.raises(ValueError, match="has 3 blocks"):
        encoder.last_layers(images, 4)


def test_poolings(encoder: VisionTransformer) -> None:
    images = torch.randn(2, 3, 8, 8)
    blocks = hooked(encoder, images)
    plain = torch.cat([block.mean(1) for block in blocks[-2:]], 1)
    torch.testing.assert_close(pooled(encoder, images, PoolingConfig(layers=2, norm="none")), plain)
    scaled = pooled(encoder, images, PoolingConfig(layers=2, norm="pooled")).view(2, 2, 16)
    torch.testing.assert_close(scaled.mean(2), torch.zeros(2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(2, correction=0), torch.ones(2, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(pooled(encoder, images, PoolingConfig()), encoder(images).mean(1))
    torch.testing.assert_close(pooled(encoder, images, PoolingConfig(layers=1)), encoder.embed(images))
    with pytest.raises(InputError, match="has 3 blocks"):
        pooled(encoder, images, PoolingConfig(layers=4))


def test_features_on_the_disk_are_the_same_and_leave_nothing(
    encoder: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    in_memory = extract_features(encoder, images, MEAN, STD, device=CPU, batch_size=7, scratch=tmp_path)
    monkeypatch.setattr(storage, "FITS", 100)
    mapped = extract_features(encoder, images, MEAN, STD, device=CPU, batch_size=7, scratch=tmp_path)
    assert torch.equal(mapped, in_memory)
    labels = np.arange(30) % 2
    both = [LabelledFeatures.select(each, labels, each, labels, ("a", "b")) for each in (in_memory, mapped)]
    assert both[1].train.data_ptr() == mapped.data_ptr(), "labelled features must not be copied into memory"
    assert knn_accuracy(KnnConfig(k=(3,)), both[0]) == knn_accuracy(KnnConfig(k=(3,)), both[1])
    assert list(tmp_path.iterdir()) == []


def test_baselines_that_do_not_fit_lie_on_the_disk_too_and_tell_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, told = labelled_colours(tmp_path / "images"), list[int]()
    (tmp_path / "scratch").mkdir()

    class Told(Silent):
        def update(self, done: int, values: Mapping[str, str | int | float], images: int = 0) -> None:
            told.append(done)

    work = Work(scratch=tmp_path / "scratch", batch_size=25, progress=lambda *_: nullcontext(Told()))
    in_memory = images.baseline("raw pixels", work)
    images.baseline("colour statistics", work)  # forgets the pixels
    assert told == [25, 50, 60, 85, 96] * 2
    maps = Path("/proc/self/maps")
    assert str(work.scratch) not in maps.read_text()
    monkeypatch.setattr(storage, "FITS", 100)
    mapped = images.baseline("raw pixels", work)
    assert maps.read_text().count(str(work.scratch)) == 2
    assert in_memory is not None
    assert mapped is not None
    assert torch.equal(mapped.train, in_memory.train)
    assert torch.equal(mapped.test, in_memory.test)


def test_a_full_disk_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FITS", 100)
    store = storage.FeatureStore(10, tmp_path / "missing")
    with pytest.raises(InputError, match="make room there, or work on a copy in a folder that you may write to"):
        store.append(torch.zeros(2, 50))


def test_a_disk_without_room_for_all_is_an_input_error_before_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), size)

    monkeypatch.setattr(storage, "FITS", 100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left on device; make room there"):
        storage.FeatureStore(10, tmp_path).append(torch.zeros(2, 50))


def test_nearest_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = torch.randn(5, 8), torch.randn(100, 8)
    whole = nearest(queries, gallery, 7)
    assert len(storage.row_blocks(gallery, 80)) == 10
    monkeypatch.setattr("cjepa.evaluation.knn.row_blocks", lambda features: storage.row_blocks(features, 80))
    parts = nearest(queries, gallery, 7)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])
