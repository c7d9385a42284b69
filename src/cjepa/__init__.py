"""C-JEPA (Contrastive-JEPA: I-JEPA + VICReg): self-supervised pre-training of vision transformers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cjepa.build import load_encoder as load_encoder
    from cjepa.models.hub import HubEncoder as HubEncoder
    from cjepa.models.pretrained import PretrainedEncoder as PretrainedEncoder

__all__ = ["HubEncoder", "PretrainedEncoder", "__version__", "load_encoder"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import on first use, so that `import cjepa` stays light; HubEncoder needs the extra `hub`."""
    match name:
        case "load_encoder":
            from cjepa.build import load_encoder

            return load_encoder
        case "PretrainedEncoder":
            from cjepa.models.pretrained import PretrainedEncoder

            return PretrainedEncoder
        case "HubEncoder":
            from cjepa.models.hub import HubEncoder

            return HubEncoder
    raise AttributeError(f"module 'cjepa' has no attribute {name!r}")
