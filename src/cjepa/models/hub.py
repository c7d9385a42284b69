"""The encoder with the Hugging Face Hub's methods; needs the extra `hub`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.vit import VisionTransformer
from cjepa.models.weights.contents import Channels
from cjepa.models.weights.folder import CONFIG, TENSORS, read_folder, write_folder
from cjepa.models.weights.reading import read_json

CARD = "README.md"


class HubEncoder(PretrainedEncoder, ModelHubMixin):
    """A PretrainedEncoder with `save_pretrained`, `from_pretrained` and `push_to_hub`, offline on local folders.

    The folder is that of `cjepa export --format safetensors`. card: the model card, markdown with a YAML head; it
    comes back from a folder and goes out with the weights. Without one, huggingface_hub writes an empty one.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        image_size: tuple[int, int],
        mean: Channels,
        std: Channels,
        evaluation_crop: float = 1.0,
        card: str = "",
    ) -> None:
        super().__init__(encoder, image_size, mean, std, evaluation_crop)
        self.card = card

    @classmethod
    def wrap(cls, encoder: PretrainedEncoder, card: str = "") -> "HubEncoder":
        """The same encoder, sharing its weights, with the Hub's methods."""
        prepared = encoder.preparation
        built = cls(
            encoder.encoder, prepared.image_size, prepared.mean, prepared.std, prepared.evaluation_crop, card=card
        )
        return built.train(encoder.training)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_folder(save_directory, self.encoder.config, self.preparation, self.encoder.state_dict())
        if self.card:
            (save_directory / CARD).write_text(self.card, encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,  # the mixin hands on keys of config.json that are names of our arguments; read_folder reads them all
    ) -> "HubEncoder":
        """From a local folder, or from a repository of the Hub of which three files are downloaded."""
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=[CONFIG, TENSORS, CARD],
                )
            )
        values: Mapping[str, Any] = read_json(folder / CONFIG)
        card = folder / CARD
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        return cls.wrap(PretrainedEncoder.of(read_folder(folder, values)), text)
