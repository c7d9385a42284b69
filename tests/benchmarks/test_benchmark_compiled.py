"""Compiled and plain steps take turns, and neither pays for the other's work."""

import pytest
import torch

from benchmarks import compiled


def test_a_clock_on_a_gpu_waits_for_what_it_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is read before the optimizer's kernels are begun, so reading it says nothing of them."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    compiled._now(torch.device("cuda"))
    compiled._now(torch.device("cpu"))
    assert waited == [torch.device("cuda")]
