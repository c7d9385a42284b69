"""Which kernel computes a product fastest where it runs: the one place that knows of devices.

All of them compute the same formulas; results differ in the last bits between devices, never between two runs on one.
The rules were found with benchmarks/peers.py and are explained in docs/performance.md.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cjepa.types import Precision

SMALL = 2**24
"""Products of fewer multiplications stay where they are: choosing takes longer than it saves."""
_CPU_INFO = Path("/proc/cpuinfo")


def chosen_precision(wanted: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """What was asked for; where that is auto, bfloat16 on devices that compute it faster than float32."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if has_fast_bfloat16(device) else "float32"


def precision_of_reading(trained: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """For what only reads the weights: that of their training, but never bfloat16 where that is slow."""
    return "float32" if trained == "float32" else chosen_precision("auto", device)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16; without them they take many times as long.

    GPUs of NVIDIA from Ampere on, and processors with AVX512-BF16 or AMX. False for others, some of which may have
    them, but on none of which that was measured.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def takes_explicit_attention(query: Tensor) -> bool:
    """On a CPU the fused kernel is slower in bfloat16 than the plain products; on a GPU it is faster."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def takes_onednn(tokens: Tensor, weight: Tensor) -> bool:
    """Whether float32 products with weights are computed by oneDNN instead of MKL.

    MKL keeps its best kernels for Intel's processors; elsewhere oneDNN, which comes with torch too, is faster. What is
    being compiled or exported is left to torch.
    """
    if torch.compiler.is_compiling():  # first: sizes may be symbols there
        return False
    return (
        tokens.device.type == "cpu"
        and tokens.dtype == weight.dtype == torch.float32
        and tokens.numel() * weight.shape[0] >= SMALL
        and not torch.is_autocast_enabled("cpu")
        and _mkl_is_slower()
    )


@cache
def _mkl_is_slower() -> bool:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()) or not _CPU_INFO.exists():
        return False
    vendors = {line.partition(":")[2].strip() for line in _CPU_INFO.read_text().splitlines() if "vendor_id" in line}
    return bool(vendors) and "GenuineIntel" not in vendors


class Linear(nn.Linear):
    """nn.Linear by the fastest kernel."""

    def forward(self, input: Float[Tensor, "*B K"]) -> Float[Tensor, "*B N"]:
        """Input times transposed weights, plus bias."""
        return linear(input, self.weight, self.bias)


def linear(
    tokens: Float[Tensor, "*B K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, "N"] | None
) -> Float[Tensor, "*B N"]:
    """tokens weight^T + bias by the fastest kernel."""
    if takes_onednn(tokens, weight):
        product: Tensor = OneDnnLinear.apply(tokens, weight, bias)
        return product
    return F.linear(tokens, weight, bias)


class OneDnnLinear(torch.autograd.Function):
    """y = x W^T + b by oneDNN, forward and for the gradient of x; MKL is faster for that of W."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Keeps input and weights."""
        ctx.save_for_backward(tokens, weight)
        ctx.has_bias = bias is not None
        return _product(tokens, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of what needs it: gradient W, gradient^T x, and its sum."""
        tokens, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None,
            rows.t() @ tokens.flatten(0, -2) if ctx.needs_input_grad[1] else None,
            rows.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )


def _product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")
    return product
