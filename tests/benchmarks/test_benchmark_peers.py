"""The comparison with the public step, on a small public checkout written here: other names, block after block."""

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import peers, public_step, throughput
from benchmarks.peers import (
    Ours,
    _seconds,
    allowed,
    compare,
    contestants_of,
    measure,
    race,
    spreads,
    table,
    variant,
    write,
)
from benchmarks.public_step import Public, Theirs
from benchmarks.step import typical_batch
from cjepa.models.predictor import PredictorConfig
from tests.benchmarks.test_benchmark_step import TINY

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="guarded timings are for Linux")

CPU = torch.device("cpu")
TRANSFORMERS = """
import torch
from torch import nn
from cjepa.models.blocks import Block
from cjepa.models.positions import sincos_positions
from src.masks.utils import apply_masks


def fixed(patches, width):
    side = round(patches**0.5)
    return nn.Parameter(sincos_positions(side, side, width), requires_grad=False)


class Patches(nn.Module):
    def __init__(self, side, size, width):
        super().__init__()
        self.num_patches = (side // size) ** 2
        self.proj = nn.Conv2d(3, width, size, stride=size)


class VisionTransformer(nn.Module):
    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, qkv_bias, norm_layer):
        super().__init__()
        self.patch_embed = Patches(img_size[0], patch_size, embed_dim)
        self.pos_embed = fixed(self.patch_embed.num_patches, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = norm_layer(embed_dim)

    def forward(self, images, masks=None):
        tokens = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.pos_embed
        tokens = tokens if masks is None else apply_masks(tokens, masks)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class VisionTransformerPredictor(nn.Module):
    def __init__(
        self, num_patches, embed_dim, predictor_embed_dim, depth, num_heads, mlp_ratio, qkv_bias, norm_layer
    ):
        super().__init__()
        self.predictor_embed = nn.Linear(embed_dim, predictor_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, predictor_embed_dim))
        self.positions = fixed(num_patches, predictor_embed_dim)
        self.predictor_blocks = nn.ModuleList(
            Block(predictor_embed_dim, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.predictor_norm = norm_layer(predictor_embed_dim)
        self.predictor_proj = nn.Linear(predictor_embed_dim, embed_dim)

    def forward(self, context, contexts, targets):
        places = self.positions.expand(len(context), -1, -1)
        known = self.predictor_embed(context) + apply_masks(places, contexts)
        asked = self.mask_token + apply_masks(places, targets)
        tokens = torch.cat([known.repeat(len(targets), 1, 1), asked], dim=1)
        for block in self.predictor_blocks:
            tokens = block(tokens)
        return self.predictor_proj(self.predictor_norm(tokens)[:, known.shape[1] :])
"""
MASKS = """
import torch


def apply_masks(tokens, masks):
    rows = torch.arange(len(tokens))[:, None]
    return torch.cat([tokens[rows, mask] for mask in masks])
"""
LOGGING = """
def grad_logger(parameters):
    return [float(each.grad.norm()) for _, each in parameters if each.grad is not None]
"""


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Public]:
    files = {"models/vision_transformer.py": TRANSFORMERS, "masks/utils.py": MASKS, "utils/logging.py": LOGGING}
    for name, text in files.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield Public.of(tmp_path)
    sys.path.remove(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "src"]:
        del sys.modules[name]


@pytest.mark.parametrize(("precision", "nearest"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_same_weights_give_the_same_loss_and_gradient(public: Public, precision: Any, nearest: float) -> None:
    found = compare(public, replace(TINY, precision=precision), CPU)
    assert found["loss"] > 0
    assert found["loss_difference"] < nearest
    assert found["gradient_difference"] < nearest


def test_other_weights_are_noticed(public: Public, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = {"blocks.0.": "blocks.1.", "blocks.1.": "blocks.0."}

    def exchange(name: str) -> str:
        return re.sub(r"blocks\.[01]\.", lambda found: swapped[found[0]], name)

    original = public_step.our_name
    monkeypatch.setattr(public_step, "our_name", lambda part, name: exchange(original(part, name)))
    assert compare(public, TINY, CPU)["gradient_difference"] > 1e-3


def test_both_go_the_same_way(public: Public) -> None:
    """After some steps, which optimizer and average take part in, the losses are still the same."""
    ours = Ours(peers._config(TINY), CPU)
    theirs, batch = Theirs(public, ours.trainer, TINY, CPU), typical_batch(TINY)
    losses = [(ours.step(batch), theirs.step(batch)) for _ in range(4)]
    assert losses[-1][0] < losses[0][0]
    for mine, other in losses:
        assert mine == pytest.approx(other, rel=1e-3)


class Counting:
    """A contestant whose steps last 1, 2, 3 ... times so long, the third one disturbed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps = seconds, 0

    def step(self) -> tuple[float, float]:
        self.steps += 1
        return self.seconds * self.steps, 0.5 if self.steps == 3 else 0.0


def test_disturbed_rounds_and_the_first_are_left_out() -> None:
    contestants: Any = {"public": Counting(3.0), "cjepa": Counting(1.0)}
    kept, disturbed = race(contestants, seconds=20.0, limit=0.05)
    assert kept == [{"public": 6.0, "cjepa": 2.0}, {"public": 12.0, "cjepa": 4.0}]
    assert disturbed == 1


def test_others_may_work_where_only_own_work_is_measured() -> None:
    assert allowed(CPU, 1) == 1.0
    assert allowed(CPU, 2) == allowed(torch.device("cuda"), 1) == 0.05


def test_the_fastest_product_of_a_gpu_is_one_that_keeps_it_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(throughput, "fastest_product", lambda *given: asked.append(given) or 1e15)
    assert peers.fastest_product(replace(TINY, precision="bfloat16"), torch.device("cuda"), 2) == 1e15
    assert asked == [(torch.device("cuda"), torch.bfloat16)]


def test_own_work_leaves_out_waiting() -> None:
    def step() -> None:
        time.sleep(0.2)

    assert _seconds(step, CPU, threads=1) < 0.1
    assert _seconds(step, CPU, threads=2) >= 0.2


def test_a_predictor_wider_than_the_encoder_has_narrow_variants() -> None:
    wide = replace(TINY, predictor=PredictorConfig(width=96, depth=2))
    assert contestants_of(wide) == peers.CONTESTANTS
    assert contestants_of(TINY) == tuple(name for name in peers.CONTESTANTS if name != peers.NARROW)
    for name in (peers.PUBLIC, peers.PLAIN):
        assert variant(wide, name) == wide
    assert variant(wide, peers.NARROW) == TINY
    assert variant(wide, peers.ONE_WAY).predictor == PredictorConfig(width=48, depth=2, attention="one_way")
    less = replace(TINY, predictor=PredictorConfig(width=24, depth=2))
    assert variant(less, peers.ONE_WAY).predictor == PredictorConfig(width=24, depth=2, attention="one_way")


def test_all_variants_have_a_column(tmp_path: Path) -> None:
    rounds = [dict(zip(peers.CONTESTANTS, (12.0, 6.0, 4.0, 3.0), strict=True))] * 3
    row = {"case": "tiny", "operations_per_image": 1, "fastest_product": 1000.0, **spreads(rounds, TINY)}
    row["environment"] = {"cpu": {"instructions": ["avx2"]}}
    row["agreement"] = {"loss_difference": 0.0, "gradient_difference": 0.0}
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"rows": [row]}))
    head, _, line = table(path).splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert cells["processor"] == "avx2"
    expected = {"": 2, ", narrow predictor": 3, ", one-way predictor": 4}
    for name, ratio in expected.items():
        assert cells[f"ratio{name}"] == f"{ratio} ({ratio} to {ratio})"


def test_a_row_says_what_was_measured(public: Public, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FEWEST", 1)
    monkeypatch.setattr(peers, "ALLOWED", 1.0)
    monkeypatch.setitem(peers.CASES, "tiny", TINY)
    row = measure(tmp_path, TINY, CPU, seconds=0.1, threads=1, wanted=("public", "cjepa"))
    assert row["ratio"].keys() == {"cjepa"}
    assert row["rounds"] > 0
    assert row["ratio"]["cjepa"]["median"] > 0
    assert 0 < row["operations_per_image"] * row["images_per_second"]["cjepa"]["median"] < 2 * row["fastest_product"]
    path = tmp_path / "new" / "peers.json"
    write(path, public, 1, [row])
    write(path, public, 1, [row | {"rounds": 77}])
    [written] = json.loads(path.read_text())["rows"]
    assert written["rounds"] == 77
    assert {"cpu", "packages", "commit"} <= written["environment"].keys()
    processor = ", ".join(written["environment"]["cpu"]["instructions"])
    assert f"| tiny | {processor} | 77 |" in table(path)
    monkeypatch.setattr(peers, "describe_environment", lambda: {"cpu": {"instructions": ["another"]}})
    write(path, public, 1, [row])
    assert [each["rounds"] for each in json.loads(path.read_text())["rows"]] == [77, row["rounds"]]


def test_the_ratio_is_that_of_each_round() -> None:
    rounds = [{"public": 4.0, "cjepa": 2.0}] * 2 + [{"public": 30.0, "cjepa": 10.0}] * 3
    found = spreads(rounds, TINY)
    assert found["ratio"]["cjepa"] == {"median": 3.0, "low": 2.0, "high": 3.0}
    assert found["images_per_second"]["cjepa"]["median"] == TINY.batch_size / 10
    assert spreads(rounds[:2], TINY)["ratio"] is None


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkout"):
        Public.of(tmp_path)
