"""Files that nobody vouches for: nothing in them is run, and nothing grows beyond its file."""

import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cjepa
from cjepa.errors import InputError
from cjepa.models.weights import open_weights, reading
from cjepa.models.weights.names import to_vit
from tests.encoders import CONFIG, transformer


class Payload:
    """Runs a command when it is unpickled by something that allows that."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def weights() -> dict[str, torch.Tensor]:
    return to_vit(transformer().state_dict(), CONFIG, (6, 6))


def refuse(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_weights(path, 4)


@pytest.mark.parametrize("place", ["value", "beside", "tensor"])
def test_a_payload_leaves_no_marker(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "marker"
    content = {
        "value": {"encoder": weights() | {"norm.weight": Payload(marker)}},
        "beside": {"target_encoder": weights(), "epoch": Payload(marker)},
        "tensor": Payload(marker),
    }[place]
    path = tmp_path / "bad.pth.tar"
    torch.save(content, path)
    refuse(path, "was not loaded .*never code")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists(), "the payload works where it is allowed to"


def test_a_plain_pickle_and_old_formats_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(marker)))
    refuse(tmp_path / "plain.pth", "not a zip archive; files from before torch 1.6")
    torch.save(weights(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "old.pth", "not a zip archive")
    assert not marker.exists()


def rewritten(source: Path, target: Path, compression: int) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return target


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    torch.save({"encoder": weights(), "bomb": torch.zeros(10**6)}, tmp_path / "plain.pth")
    path = rewritten(tmp_path / "plain.pth", tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < (tmp_path / "plain.pth").stat().st_size / 10
    refuse(path, "is compressed, which torch.save never does")


def test_members_that_claim_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(), tmp_path / "fine.pth")
    open_weights(tmp_path / "fine.pth", 4)
    monkeypatch.setattr(reading, "MOST_BYTES", 1000)
    refuse(tmp_path / "fine.pth", "its members claim .* bytes")


def test_a_tensor_that_claims_more_memory_than_it_has(tmp_path: Path) -> None:
    """A stride of zero makes a width of a million out of one number."""
    huge = torch.zeros(1).expand(10**6, 3, 16, 16)
    torch.save(weights() | {"patch_embed.proj.weight": huge}, tmp_path / "huge.pth")
    refuse(tmp_path / "huge.pth", "with memory of its own: 'patch_embed.proj.weight'")
    torch.save(weights() | {"norm.bias": torch.zeros(48, dtype=torch.int64)}, tmp_path / "integers.pth")
    refuse(tmp_path / "integers.pth", "not a floating-point tensor")
    torch.save(weights() | {"norm.bias": torch.zeros(48).to_sparse()}, tmp_path / "sparse.pth")
    refuse(tmp_path / "sparse.pth", "not a floating-point tensor")


def test_one_tensor_under_many_names(tmp_path: Path) -> None:
    """The copies of a tensor that a small file holds once must not fill the memory."""
    shared = torch.zeros(10**5)
    torch.save(weights() | {f"blocks.{number}.extra": shared for number in range(100)}, tmp_path / "shared.pth")
    refuse(tmp_path / "shared.pth", "its tensors share memory; apart they are 40,.* bytes, but the file has")


def test_encoder_and_target_may_share_their_tensors(tmp_path: Path) -> None:
    torch.save({"encoder": weights(), "target_encoder": weights()}, tmp_path / "apart.pth")
    same = weights()
    torch.save({"encoder": same, "target_encoder": same}, tmp_path / "shared.pth")
    assert open_weights(tmp_path / "shared.pth", 4).digest() == open_weights(tmp_path / "apart.pth", 4).digest()


class Reservation:
    """Memory that a pickle asks for by a number."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (10**8,)


def test_a_pickle_reserves_no_memory(tmp_path: Path) -> None:
    """torch counts bytearray among the harmless names."""
    torch.save(weights() | {"epoch": Reservation()}, tmp_path / "bad.pth")
    assert len(torch.load(tmp_path / "bad.pth", weights_only=True)["epoch"]) == 10**8
    assert (tmp_path / "bad.pth").stat().st_size < 10**6
    refuse(tmp_path / "bad.pth", "asks for a bytearray")


def test_many_blocks_without_content_cost_little(tmp_path: Path) -> None:
    """No block is built for a name in a file, and a message does not list them all."""
    empty = {f"blocks.{number}.norm1.bias": torch.zeros(0) for number in range(1, 3000)}
    save_file(weights() | empty, tmp_path / "names.safetensors")
    tracemalloc.start()
    with pytest.raises(InputError, match=r"missing: .*\n  and [\d,]+ more$") as error:
        open_weights(tmp_path / "names.safetensors", 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(error.value)) < 5000
    assert peak < 30e6, f"{peak / 1e6:.0f} MB"


def test_a_block_number_asks_for_no_depth(tmp_path: Path) -> None:
    save_file(weights() | {"blocks.999999999.norm1.bias": torch.zeros(48)}, tmp_path / "deep.safetensors")
    refuse(tmp_path / "deep.safetensors", "not of this encoder: blocks.999999999.norm1.bias")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "noise.pth", "noise.safetensors", "empty.pt"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    torch.save(weights(), tmp_path / "whole.pth")
    save_file(weights(), tmp_path / "whole.safetensors")
    path = tmp_path / name
    whole = tmp_path / f"whole{path.suffix}"
    content = {"cut": lambda: whole.read_bytes()[:-2000], "noise": lambda: os.urandom(5000), "empty": lambda: b""}
    path.write_bytes(content[path.stem]())
    refuse(path, "cannot be read|was not loaded")


def test_damaged_members(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "whole.pth")
    content = bytearray((tmp_path / "whole.pth").read_bytes())
    start = content.index(b"data.pkl") + 8
    for position in range(start, start + 3000, 97):
        content[position] ^= 0xFF
    (tmp_path / "flipped.pth").write_bytes(content)
    refuse(tmp_path / "flipped.pth", "was not loaded|cannot be read|holds a|no vision transformer|fit an encoder")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"a": NaN', "\x00", " " * (1 << 21)])
def test_damaged_configs(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refuse(tmp_path, "valid JSON|JSON object|larger than")


def test_names_in_a_config_never_become_paths(tmp_path: Path) -> None:
    """An index that names other files, as sharded models have, is not followed."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(weights(), tmp_path / "outside.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "ijepa", "num_attention_heads": 4}))
    index = {"weight_map": {"layernorm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        cjepa.load_encoder(folder)
