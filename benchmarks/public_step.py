"""The training step of the public I-JEPA code, around modules imported from a checkout of it, for peers.py.

The checkout is never part of this repository: its licence is CC-BY-NC. Its step is taken as it is published: autocast,
AdamW that is not fused, the statistics of the gradient, the moving average parameter by parameter; without images to
load and without the scaling of gradients, which a CPU does not do.
"""

import copy
import hashlib
import importlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.step import Case
from cjepa.models import JEPA
from cjepa.training.schedules import learning_rate
from cjepa.training.trainer import Trainer
from cjepa.types import Batch

NAMES = {"project_in": "predictor_embed", "blocks": "predictor_blocks", "norm": "predictor_norm"}
NAMES |= {"project_out": "predictor_proj", "mask_token": "mask_token"}
"""Parts of our predictor, and what the public one calls them."""


@dataclass(frozen=True)
class Public:
    """What is taken from the checkout: the module of both transformers, and two functions of the step."""

    transformers: ModuleType
    masks: ModuleType
    logging: ModuleType
    sha256: str

    @classmethod
    def of(cls, folder: Path) -> "Public":
        """From a checkout; SystemExit where it is none."""
        source = folder / "src" / "models" / "vision_transformer.py"
        if not source.is_file():
            raise SystemExit(f"{folder} is no checkout of facebookresearch/ijepa: {source} is not there")
        if str(folder.resolve()) not in sys.path:
            sys.path.insert(0, str(folder.resolve()))
        transformers, masks, logging = (
            importlib.import_module(f"src.{name}")
            for name in ("models.vision_transformer", "masks.utils", "utils.logging")
        )
        return cls(transformers, masks, logging, hashlib.sha256(source.read_bytes()).hexdigest())


class Theirs:
    """The published step around the public modules, with the weights, rates and precision of a trainer of ours."""

    def __init__(self, public: Public, trainer: Trainer, case: Case, device: torch.device) -> None:
        self.public, self.device = public, device
        self.bfloat16 = case.precision == "bfloat16"
        self.encoder, self.predictor = _modules(public, case)
        assert isinstance(trainer.model, JEPA)
        _load(self.encoder, self.predictor, trainer.model)
        self.encoder.to(device)
        self.predictor.to(device)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.normalise = trainer.normalise
        config = trainer.config
        self.momentum = config.momentum.start
        parts = (self.encoder, self.predictor)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in part.parameters() if p.requires_grad and p.ndim > 1]} for part in parts
        ]
        vectors = [p for part in parts for p in part.parameters() if p.requires_grad and p.ndim == 1]
        groups.append({"params": vectors, "weight_decay": 0.0})
        rate = learning_rate(config.optimizer.learning_rate, 0, trainer.warmup_steps, trainer.total_steps)
        self.optimizer = torch.optim.AdamW(
            groups, lr=rate, betas=config.optimizer.betas, weight_decay=config.optimizer.weight_decay.start
        )

    def step(self, batch: Batch) -> float:
        """Take one; its loss."""
        loss = self._backward(batch)
        self.optimizer.step()
        self.public.logging.grad_logger(self.encoder.named_parameters())
        self.optimizer.zero_grad()
        with torch.no_grad():
            for average, current in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
                average.mul_(self.momentum).add_(current, alpha=1 - self.momentum)
        return loss

    def gradient(self, batch: Batch) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradient from the weights as they are, by the names of ours."""
        loss = self._backward(batch)
        found = {
            our_name("encoder", name): flat_gradient(p) for name, p in self.encoder.named_parameters() if _learns(p)
        }
        found |= {
            our_name("predictor", name): flat_gradient(p) for name, p in self.predictor.named_parameters() if _learns(p)
        }
        self.optimizer.zero_grad()
        return loss, found

    def _backward(self, batch: Batch) -> float:
        images = self.normalise(batch.images.to(self.device, non_blocking=True))
        contexts = [batch.masks.context.to(self.device, non_blocking=True)]
        targets = list(batch.masks.targets.to(self.device, non_blocking=True).unbind(1))
        apply_masks = self.public.masks.apply_masks
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            with torch.no_grad():
                embedded = self.target(images)
                wanted = apply_masks(F.layer_norm(embedded, embedded.shape[-1:]), targets)
            predicted = self.predictor(self.encoder(images, contexts), contexts, targets)
            loss = F.smooth_l1_loss(predicted, wanted)
        loss.backward()
        return float(loss.detach())


def _modules(public: Public, case: Case) -> tuple[nn.Module, nn.Module]:
    encoder, predictor = case.encoder, case.predictor
    norm = partial(nn.LayerNorm, eps=1e-6)
    built = public.transformers.VisionTransformer(
        img_size=[case.image_size],
        patch_size=encoder.patch_size,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        mlp_ratio=encoder.mlp_ratio,
        qkv_bias=True,
        norm_layer=norm,
    )
    predicting = public.transformers.VisionTransformerPredictor(
        num_patches=built.patch_embed.num_patches,
        embed_dim=encoder.width,
        predictor_embed_dim=predictor.width,
        depth=predictor.blocks(encoder.width),
        num_heads=predictor.heads or encoder.heads,
        mlp_ratio=predictor.mlp_ratio,
        qkv_bias=True,
        norm_layer=norm,
    )
    return built, predicting


def _load(encoder: nn.Module, predictor: nn.Module, model: JEPA) -> None:
    """Our weights into their modules: everything that learns must be given."""
    for part, module, source in (("encoder", encoder, model.encoder), ("predictor", predictor, model.predictor)):
        weights = {f"{part}.{name}": tensor for name, tensor in source.named_parameters()}
        for name, parameter in module.named_parameters():
            if _learns(parameter):
                parameter.data.copy_(weights.pop(our_name(part, name)).detach().reshape(parameter.shape))
        assert not weights, f"the public {part} has no {', '.join(weights)}"


def our_name(part: str, name: str) -> str:
    """What we call a parameter of a public module."""
    if part == "encoder":
        return f"encoder.{name.replace('patch_embed.proj', 'patch_projection')}"
    first, *rest = name.split(".")
    own = {theirs: ours for ours, theirs in NAMES.items()}[first]
    return ".".join(("predictor", own, *rest))


def _learns(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def flat_gradient(parameter: nn.Parameter) -> Tensor:
    """A copy of its gradient, as a vector."""
    assert parameter.grad is not None
    return parameter.grad.detach().float().flatten().clone()
