"""What can be said about a training."""

from typing import Literal

from pydantic import Field

from cjepa.training.optimizer import OptimizerConfig
from cjepa.training.parallel import Parallel
from cjepa.training.schedules import MomentumConfig
from cjepa.training.spikes import SpikesConfig
from cjepa.types import Part, Precision


class TrainingConfig(Part):
    """How long, how large and how fast."""

    epochs: float = Field(100.0, gt=0)
    """Length of the training, in passes over the training images."""
    batch_size: int = Field(256, ge=2)
    """Images per step over all devices; VICReg's statistics are taken over them."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    """AdamW and its schedules."""
    momentum: MomentumConfig = Field(default_factory=lambda: MomentumConfig())
    """Momentum of the target encoder's moving average."""
    precision: Literal["auto"] | Precision = "auto"
    """Arithmetic of the forward pass (autocast); weights, targets' average, losses and statistics stay float32. auto:
    bfloat16 where the device has instructions for it, else float32; a run keeps what it began with."""
    device: str = "auto"
    """Where to train: auto (a GPU if any), cpu, cuda, cuda:1, mps (untested); of several ranks each has its own GPU."""
    parallel: Parallel = "auto"
    """Engine for several ranks (torchrun): ddp, whole copies; fsdp, shards of everything; auto: ddp if it fits."""
    micro_batch: int | None = Field(None, ge=1)
    """Most images in one forward pass; by default what fits the device. The gradient is that of the whole batch."""
    checkpoint_activations: bool = False
    """Compute the inside of each block again in the backward pass: less memory, about a third more work."""
    compile: bool = False
    """Compile the transformer blocks with torch.compile: minutes at the start for faster steps on a GPU. The last bits
    differ from those of plain blocks, and may between two starts."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads; by default torch's choice. Runs with different numbers of threads differ in the last bits."""
    log_every: int = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""
    evaluate_every: float = Field(1.0, gt=0)
    """Epochs between two evaluations; there is one before the first step and one after the last."""
    checkpoint_every: float = Field(1.0, gt=0)
    """Epochs between two checkpoints; the last two and the best one are kept."""
    most_skipped: int = Field(10, ge=1)
    """Steps in a row that change nothing, their loss or gradient not finite or a spike, before the run gives up."""
    spikes: SpikesConfig = Field(default_factory=lambda: SpikesConfig())
    """What to do when loss or gradient jump far above those of the steps before."""
    on_failed_write: Literal["stop", "continue"] = "stop"
    """When a checkpoint or a row cannot be written, on a full disk for instance: stop, or warn and continue."""
    deterministic: bool = False
    """On a GPU, add up in the same order every time, so that a continued run has the bits of an undisturbed one; slower
    there. A CPU always does."""
    recheck_every: int | None = Field(None, ge=1)
    """Steps between two that are computed twice and compared to the bit, to notice a faulty machine; null: never."""
    hang_after: float | None = Field(3600.0, gt=0)
    """Seconds without a finished step, its evaluation and save included, after which a run prints where it waits and
    leaves (75)."""
