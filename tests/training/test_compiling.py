"""training.compile: the same steps by compiled blocks, and few programs for all lengths of masks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cjepa.models.blocks import Block, compile_blocks
from tests.training.conftest import tiny_config
from tests.training.harness import Run

ROOT = Path(__file__).parents[2]


def compared(backend: str, **changes: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.training.compiled_run", backend, json.dumps(changes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow), {"checkpoint_activations": True, "micro_batch": 12}]
)
def test_compiled_blocks_take_the_same_steps(changes: dict[str, object]) -> None:
    found = compared("aot_eager", **changes)
    assert found["same_names"], "a checkpoint names no compiler"
    assert found["continues"], "with or without one"
    assert found["furthest"] < 1e-5
    assert found["lengths"] >= 4
    assert 0 < found["programs"] <= 16
    assert not found["breaks"]
    assert not found["given_up"]


@pytest.mark.slow
def test_the_real_compiler_takes_them_too() -> None:
    found = compared("inductor")
    assert found["inductor"]
    assert found["furthest"] < 1e-3


def test_blocks_are_compiled_without_keywords_that_an_older_torch_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that are lent have torch 2.11, and no other can be brought there."""
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(Block, "compile", lambda _, **given: asked.append(given))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    part = nn.Module()
    part.blocks = nn.ModuleList([Block(8, 2, 2.0), Block(8, 2, 2.0)])
    compile_blocks([part])
    assert asked == [{}, {}]
    assert torch._dynamo.config.recompile_limit == 64


def test_blocks_are_plain_by_default(tmp_path: Path) -> None:
    blocks = [each for each in Run(tiny_config(), tmp_path).trainer.model.modules() if isinstance(each, Block)]
    assert blocks
    assert all(block._compiled_call_impl is None for block in blocks)
