"""C-JEPA (Contrastive-JEPA: I-JEPA + VICReg): self-supervised pre-training of vision transformers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cjepa.build import load_encoder as load_encoder

__all__ = ["__version__", "load_encoder"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import on first use, so that `import cjepa` stays light."""
    if name == "load_encoder":
        from cjepa.build import load_encoder

        return load_encoder
    raise AttributeError(f"module 'cjepa' has no attribute {name!r}")
