"""The Hub's methods, offline on local folders."""

from pathlib import Path
from typing import Any

import pytest
import torch

import cjepa
from tests.encoders import pixels, pretrained

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from cjepa.models.hub import HubEncoder  # noqa: E402

CARD = "---\nlicense: mit\n---\n\n# An encoder\n"


def test_a_folder_gives_back_encoder_and_card(tmp_path: Path) -> None:
    ours = pretrained(size=(16, 24), crop=0.9)
    HubEncoder.wrap(ours, CARD).save_pretrained(tmp_path / "saved")
    again = HubEncoder.from_pretrained(tmp_path / "saved")
    assert isinstance(again, cjepa.HubEncoder)
    assert torch.equal(again(pixels()), ours(pixels()))
    assert (again.card, again.preparation) == (CARD, ours.preparation)
    assert not again.training
    assert torch.equal(cjepa.load_encoder(tmp_path / "saved")(pixels()), ours(pixels()))


def test_a_card_in_another_encoding_is_no_reason_to_fail(tmp_path: Path) -> None:
    HubEncoder.wrap(pretrained(), CARD).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes("# Pr\u00e4parate\n".encode("latin-1"))
    assert HubEncoder.from_pretrained(tmp_path).card == "# Pr\ufffdparate\n"


def test_without_a_card_the_library_writes_one(tmp_path: Path) -> None:
    HubEncoder.wrap(pretrained()).save_pretrained(tmp_path)
    assert "model_hub_mixin" in (tmp_path / "README.md").read_text()


def test_pushing_uploads_weights_config_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything up to the network is the library's own; what would be uploaded is looked at."""
    uploaded: dict[str, bytes] = {}

    class Offline:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: str | Path, **_: Any) -> str:
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return "https://example.org/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Offline)
    HubEncoder.wrap(pretrained(), CARD).push_to_hub("somebody/encoder")
    assert uploaded.keys() == {"README.md", "config.json", "model.safetensors"}
    assert uploaded["README.md"].decode() == CARD
    (tmp_path / "model.safetensors").write_bytes(uploaded["model.safetensors"])
    (tmp_path / "config.json").write_bytes(uploaded["config.json"])
    assert torch.equal(HubEncoder.from_pretrained(tmp_path)(pixels()), pretrained()(pixels()))
