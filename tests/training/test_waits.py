"""What the host waits for while a GPU computes a loss, seen on a GPU that only pretends: none is needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cjepa.build import build_stream, build_trainer
from cjepa.data import DataConfig, DemoConfig, DeviceImages, Splits
from cjepa.data.crops import DRAWS
from cjepa.models.pretrained import normalise
from cjepa.types import Masks, to_device
from tests.training.conftest import Textures, tiny_config

GPU = torch.device("cuda", 0)


class Waits(TorchDispatchMode):
    """Notes the operations for which the host would wait: copies that are no asynchronous ones, and read numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [each for each in args if isinstance(each, Tensor)]
        found = func(*args, **(kwargs or {}))
        moved = isinstance(found, Tensor) and any(each.device != found.device and each.ndim for each in given)
        copied = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and moved
        if copied and not ((kwargs or {}).get("non_blocking") or args[2:] == (True,)):
            self.seen.append(str(func))
        return found


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Within, tensors have devices and shapes and no numbers."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # which they do not know
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # nor what is drawn again
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, _: module)  # they cannot be exchanged for others
    monkeypatch.setattr(torch.autograd, "backward", lambda *_, **__: None)  # which asks for a real device
    monkeypatch.setattr("cjepa.build.device_memory", lambda _: 80e9)
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        yield waits


def test_a_plain_copy_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(monkeypatch) as waits:
        torch.tensor([1.0, 2.0], device=GPU)
        torch.zeros(3).to(GPU)
        torch.zeros(3, device=GPU).cpu()
        assert len(waits.seen) == 3
        assert to_device(torch.zeros(3), GPU).device == GPU
        assert to_device(torch.zeros(3, device=GPU), GPU).device == GPU
        assert len(waits.seen) == 3


@pytest.mark.parametrize(
    ("objective", "micro_batch"), [("cjepa", None), ("cjepa-context", 8), ("cjepa-sigreg", None), ("vicreg", 8)]
)
def test_up_to_its_loss_a_step_waits_for_nothing(
    objective: str, micro_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(objective={"name": objective})
    config = config.model_copy(update={"training": config.training.model_copy(update={"micro_batch": micro_batch})})
    splits = Splits(Textures(per_class=64), Textures(per_class=16))
    batch = build_stream(config, splits)[0]
    with pretended(monkeypatch) as waits:
        with GPU:
            trainer = build_trainer(config, 64, GPU)
        trainer.batch_loss.backward(batch, 0)  # positions are computed once
        waits.seen.clear()
        loss = trainer.batch_loss.backward(batch, 1)
        assert loss.total.device == GPU
        assert waits.seen == []


def test_crops_on_a_gpu_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config, samples = DataConfig(source=DemoConfig(), image_size=32), np.array([3, 0, 5])
    draws = np.random.default_rng(0).random((3, DRAWS)).tolist()
    with pretended(monkeypatch) as waits:
        images = DeviceImages(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), GPU)
        waits.seen.clear()
        crops = images.crops(samples, draws, config)
        masks = Masks(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 2, 4, dtype=torch.int64)).to(GPU)
        assert normalise(crops, config.mean, config.std).device == masks.targets.device == GPU
        assert waits.seen == []
