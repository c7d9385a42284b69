"""Every fast kernel gives what the plain one gives, values and gradients; the rules say where each is taken."""

import platform
from pathlib import Path
from time import process_time

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa.models import kernels
from cjepa.models.blocks import Block
from cjepa.models.kernels import (
    Linear,
    OneDnnLinear,
    chosen_precision,
    has_fast_bfloat16,
    linear,
    precision_of_reading,
    takes_onednn,
)
from cjepa.types import Precision

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor on which MKL is slower, for products of any size."""
    monkeypatch.setattr(kernels, "_mkl_is_slower", lambda: True)
    monkeypatch.setattr(kernels, "SMALL", 0)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_onednn_gives_the_plain_product_and_its_gradients(shape: tuple[int, ...], bias: bool) -> None:
    weight, shift = normal(7, 5, seed=1).requires_grad_(), normal(7, seed=2).requires_grad_() if bias else None
    tokens, direction = normal(*shape).requires_grad_(), normal(*shape[:-1], 7, seed=3)
    learned = [tensor for tensor in (tokens, weight, shift) if tensor is not None]
    fast, plain = OneDnnLinear.apply(tokens, weight, shift), F.linear(tokens, weight, shift)
    torch.testing.assert_close(fast, plain)
    found = torch.autograd.grad(fast, learned, direction)
    for mine, other in zip(found, torch.autograd.grad(plain, learned, direction), strict=True):
        torch.testing.assert_close(mine, other)


@needs_onednn
def test_tokens_that_are_not_contiguous() -> None:
    weight, tokens = normal(7, 5, seed=1), normal(2, 9, 5).transpose(0, 1)[3:]
    torch.testing.assert_close(OneDnnLinear.apply(tokens, weight, None), F.linear(tokens, weight))


@needs_onednn
def test_nothing_is_computed_for_what_needs_no_gradient() -> None:
    weight, tokens = normal(7, 5, seed=1), normal(4, 5).requires_grad_()
    OneDnnLinear.apply(tokens, weight, None).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(tokens.grad, weight.sum(dim=0).expand(4, 5))
    assert not linear(tokens.detach(), weight, None).requires_grad


@needs_onednn
@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("queries", [None, 3])
def test_a_block_is_the_same_by_either_kernel(
    monkeypatch: pytest.MonkeyPatch, queries: int | None, recompute: bool
) -> None:
    block, given = Block(16, 4, 2.0), normal(2, 9, 16)
    block.recompute = recompute

    def outcome() -> list[Tensor]:
        tokens = given.clone().requires_grad_()
        output = block(tokens, queries)
        return [output, *torch.autograd.grad(output.square().sum(), [tokens, *block.parameters()])]

    fast = outcome()
    monkeypatch.setattr(kernels, "takes_onednn", lambda *_: False)
    for mine, other in zip(fast, outcome(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("everywhere")
def test_onednn_is_for_float32_outside_autocast_and_compilers() -> None:
    tokens, weight = normal(4, 5), normal(7, 5)
    assert takes_onednn(tokens, weight)
    assert not takes_onednn(tokens.double(), weight.double())
    assert not takes_onednn(tokens.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_onednn(tokens, weight)
        assert linear(tokens, weight, None).dtype == torch.bfloat16


@pytest.mark.usefixtures("everywhere")
def test_an_exported_program_holds_operations_that_every_runtime_knows() -> None:
    images = torch.export.Dim("images", min=2)
    program = torch.export.export(Linear(5, 7), (normal(4, 5),), dynamic_shapes=({0: images},))
    assert "mkldnn" not in str(program.graph)
    assert program.module()(normal(9, 5)).shape == (9, 7)


def test_small_products_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_mkl_is_slower", lambda: True)
    assert not takes_onednn(normal(4, 5), normal(7, 5))
    assert takes_onednn(normal(kernels.SMALL // 64, 8), normal(8, 8))


@pytest.mark.parametrize(("vendor", "slower"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processor_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, slower: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: x\n")
    monkeypatch.setattr(kernels, "_CPU_INFO", path)
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert kernels._mkl_is_slower.__wrapped__() == (slower and available)
    monkeypatch.setattr(kernels, "_CPU_INFO", tmp_path / "nothing")
    assert not kernels._mkl_is_slower.__wrapped__()


@pytest.mark.parametrize(
    ("instructions", "found"),
    [({"avx2": True, "avx512_f": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)],
)
def test_bfloat16_is_for_processors_with_its_instructions(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], found: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert has_fast_bfloat16(torch.device("cpu")) == found
    assert not has_fast_bfloat16(torch.device("mps"))


@pytest.mark.parametrize("fast", ["bfloat16", "float32"])
def test_what_is_asked_for_is_taken_and_auto_is_fast(monkeypatch: pytest.MonkeyPatch, fast: Precision) -> None:
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda _: fast == "bfloat16")
    cpu = torch.device("cpu")
    assert chosen_precision("auto", cpu) == fast
    assert chosen_precision("bfloat16", cpu) == "bfloat16"
    assert chosen_precision("float32", cpu) == "float32"
    assert precision_of_reading("auto", cpu) == precision_of_reading("bfloat16", cpu) == fast
    assert precision_of_reading("float32", cpu) == "float32"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the rule was measured on x86 alone")
def test_the_rule_agrees_with_the_clock() -> None:
    """Where bfloat16 is chosen it is no slower, and where it is not, nobody loses much by that."""
    matrix = normal(512, 512)

    def seconds(kind: torch.dtype) -> float:
        factor, times = matrix.to(kind), []
        for _ in range(5):
            started = process_time()
            factor @ factor
            times.append(process_time() - started)
        return min(times)

    gain = seconds(torch.float32) / seconds(torch.bfloat16)
    assert gain > 0.8 if has_fast_bfloat16(torch.device("cpu")) else gain < 1.6


def test_it_is_a_linear_layer_for_everyone_else() -> None:
    mine, plain = Linear(5, 7), nn.Linear(5, 7)
    plain.load_state_dict(mine.state_dict())
    assert isinstance(mine, nn.Linear)
    torch.testing.assert_close(mine(normal(4, 5)), plain(normal(4, 5)))
