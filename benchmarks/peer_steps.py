"""Training steps of I-JEPA around the modules of other packages, for throughput.py.

Sizes, images, masks, precision and optimizer (fused AdamW) are those of the case; the masks are given, so that no
way pays for drawing them. Each class says what its package does otherwise.
"""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.public_step import Public, Theirs
from benchmarks.step import Case
from cjepa.build import build_trainer
from cjepa.types import Batch, Masks

NEEDS = {"lightly": ("lightly", "timm"), "stable-pretraining": ("stable_pretraining", "timm")}
"""Modules without which a way cannot be measured."""
MOMENTUM = 0.996


def missing(way: str) -> list[str]:
    """Modules that a way needs and that are not installed."""
    return [name for name in NEEDS.get(way, ()) if find_spec(name) is None]


class PublicCode:
    """The published step around the modules of a checkout of facebookresearch/ijepa (public_step.py)."""

    def __init__(self, case: Case, device: torch.device, batch: Batch, reference: Path) -> None:
        trainer = build_trainer(case.config, 100 * case.batch_size, device)
        self.theirs, self.batch = Theirs(Public.of(reference), trainer, case, device), batch

    def step(self) -> float:
        """Take one; its loss."""
        return self.theirs.step(self.batch)


class Lightly:
    """lightly's masked encoder and predictor; its positions are fixed, as ours."""

    def __init__(self, case: Case, device: torch.device, batch: Batch) -> None:
        from lightly.models.modules import IJEPAPredictorTIMM, MaskedVisionTransformerTIMM

        encoder, predictor = case.encoder, case.predictor
        transformer = _timm_encoder(case)
        self.student = MaskedVisionTransformerTIMM(vit=transformer).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = IJEPAPredictorTIMM(
            num_patches=transformer.patch_embed.num_patches,
            depth=predictor.blocks(encoder.width),
            mlp_dim=encoder.width,
            predictor_embed_dim=predictor.width,
            num_heads=predictor.heads or encoder.heads,
        ).to(device)
        self.optimizer = _optimizer(self.student, self.predictor)
        self.device, self.batch = device, batch

    def step(self) -> float:
        """Take one; its loss."""
        from lightly.models import utils

        images, masks = _on_device(self.batch, self.device)
        context, targets = masks.context, list(masks.targets.unbind(1))
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                embedded = self.teacher.encode(images)
                wanted = utils.apply_masks(functional.layer_norm(embedded, embedded.shape[-1:]), targets)
            predicted = self.predictor(self.student.encode(images, idx_keep=context), [context], targets)
            loss = functional.smooth_l1_loss(predicted, wanted)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        utils.update_momentum(self.student, self.teacher, MOMENTUM)
        return float(loss.detach())


class StablePretraining:
    """stable-pretraining's method I-JEPA, forward pass, loss and moving average as it has them, without Lightning.

    Another predictor than the paper's: all target patches of an image lie in one sequence with its context, where
    the paper has one for each block. It counts them once, since its blocks do not overlap; here it is given the patches
    of all blocks of our masks, as many as every other way predicts. The encoder's positions are learned, the
    predictor's heads 64 wide.
    """

    def __init__(self, case: Case, device: torch.device, batch: Batch) -> None:
        from stable_pretraining.methods.ijepa import IJEPA

        predictor = case.predictor
        self.model = IJEPA(
            _timm_encoder(case),
            predictor_embed_dim=predictor.width,
            predictor_depth=predictor.blocks(case.encoder.width),
            ema_decay_start=MOMENTUM,
        ).to(device)
        self.given = self.model.masking = _GivenMasks()
        self.optimizer = _optimizer(self.model)
        self.device, self.batch = device, batch

    def step(self) -> float:
        """Take one; its loss."""
        images, self.given.masks = _on_device(self.batch, self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model(images).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.encoder.update_teacher()
        return float(loss.detach())


class _GivenMasks(nn.Module):
    """Masks that were drawn already, in place of stable-pretraining's own, which draws them image by image."""

    masks: Masks

    def forward(self, patches: Tensor, height: int, width: int) -> Any:
        from stable_pretraining.backbone.patch_masking import IJEPAMaskOutput

        assert patches.shape[1] == height * width
        return IJEPAMaskOutput(context_idx=self.masks.context, target_idx=self.masks.targets.flatten(1))


def _timm_encoder(case: Case) -> Any:
    """The encoder of a case as timm's VisionTransformer: patches alone, no class token and no head."""
    from timm.models.vision_transformer import VisionTransformer

    encoder = case.encoder
    return VisionTransformer(
        img_size=case.image_size,
        patch_size=encoder.patch_size,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        num_classes=0,
    )


def _optimizer(*parts: nn.Module) -> torch.optim.Optimizer:
    learned = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learned, lr=1e-4, fused=True)


def _on_device(batch: Batch, device: torch.device) -> tuple[Tensor, Masks]:
    return batch.images.to(device, non_blocking=True).float() / 255, batch.masks.to(device)
