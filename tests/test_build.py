"""From configs and run folders to objects."""

from pathlib import Path

import pytest
import torch

import cjepa
from cjepa.build import (
    _fitted,
    build_encoder,
    build_model,
    choose_device,
    find_checkpoint,
    footprint_of,
    read_config,
)
from cjepa.config.presets import resolve
from cjepa.errors import InputError
from cjepa.models.pretrained import normalise
from cjepa.runs import pretrain
from cjepa.runs.planning import GIB, MEMORY, plan
from cjepa.training.device_memory import USABLE
from tests.tiny_runs import write_config, write_images

PIXELS = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    images = write_images(folder / "images")
    pretrain(resolve(str(write_config(folder)), [f"data={images}"]), folder / "run")
    return folder / "run"


def test_an_encoder_is_loaded_from_its_run(run: Path) -> None:
    encoder = cjepa.load_encoder(run)
    patches = encoder(PIXELS)
    assert patches.shape == (2, 16, 32)
    assert (encoder.width, encoder.patch_size, encoder.image_size) == (32, 4, (16, 16))
    torch.testing.assert_close(encoder.embed(PIXELS), patches.mean(1))
    prepared = normalise(PIXELS, encoder.mean, encoder.std)
    torch.testing.assert_close(encoder(prepared), patches)
    assert encoder(torch.zeros(1, 3, 8, 24)).shape == (1, 12, 32), "any size that the patches divide"
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training


def test_the_encoders_of_a_run_differ(run: Path) -> None:
    target, context = cjepa.load_encoder(run), cjepa.load_encoder(str(run), encoder="context")
    untrained = cjepa.load_encoder(run, checkpoint="untrained")
    outputs = [encoder.embed(PIXELS) for encoder in (target, context, untrained)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(outputs[one], outputs[other], atol=1e-6)


def test_the_weights_are_those_of_the_checkpoint(run: Path) -> None:
    last = find_checkpoint(run, "last")
    assert last.step == 3
    for name, which in (("target_encoder", "target"), ("encoder", "context")):
        saved = last.tensors(name)
        loaded = cjepa.load_encoder(run, encoder=which).encoder.state_dict()  # type: ignore[arg-type]
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[key], loaded[key]) for key in saved)


def test_the_best_checkpoint_is_the_one_that_the_last_one_names(run: Path) -> None:
    best = find_checkpoint(run, "best")
    assert best.step == find_checkpoint(run, "last").state["progress"]["best_step"]
    expected = build_encoder(read_config(run), best).embed(PIXELS)
    assert torch.equal(cjepa.load_encoder(run, checkpoint="best").embed(PIXELS), expected)


def test_the_untrained_encoder_is_the_one_that_the_run_began_with(run: Path) -> None:
    config = read_config(run)
    start = build_encoder(config, None)
    assert torch.equal(start.embed(PIXELS), build_encoder(config, None).embed(PIXELS))
    first = find_checkpoint(run, "last").path.with_name("step-00000000")
    assert first.is_dir(), "the newest two and the best are kept, and there are only two"
    model = build_model(config)
    for one, other in zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has no config\.yaml; give the --out of cjepa pretrain"):
        cjepa.load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["cuda:99", "toaster", "meta:x", "meta", "hpu", "privateuseone"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"device {name} cannot be used here: .*; use auto or cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda:0", "cuda:1"])
def test_ranks_of_one_machine_do_not_share_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "2" if "SIZE" in variable else "0")
    with pytest.raises(InputError, match=f"device {name}: the 2 ranks of this machine need a GPU each; use cuda"):
        choose_device(name)


def test_the_machine_s_memory_takes_nothing_from_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve("imagenet-vit-b", ["data=unused", "training.precision=bfloat16"])
    planned = plan(config, "cuda:A100", 1, None).micro_batch
    assert planned < config.training.batch_size, "else the memory decides nothing"
    monkeypatch.setattr("cjepa.build.device_memory", lambda _: MEMORY["A100"] * GIB)
    monkeypatch.setattr("cjepa.training.device_memory.resident_memory", lambda: 60 * GIB)
    assert _fitted(config, torch.device("cuda")).micro_batch == planned


def test_a_start_on_the_same_machine_takes_the_same_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although a process has a few MB more or less each time: the sums of other parts have other last bits."""
    config = resolve("imagenet-vit-b", ["data=unused", "training.precision=float32"])
    usual, jitter = 600.0 * 2**20, 5.0 * 2**20
    room = footprint_of(config, "cpu").memory(config.training.batch_size, 128)  # just enough for 128 at a time
    monkeypatch.setattr("cjepa.build.device_memory", lambda _: (room + usual) / USABLE)
    parts = set()
    for occupied in (usual - jitter, usual + jitter):
        monkeypatch.setattr("cjepa.build.occupied_memory", lambda _, bytes_=occupied: bytes_)
        parts.add(_fitted(config, torch.device("cpu")).micro_batch)
    assert len(parts) == 1
    assert max(parts) < config.training.batch_size, "else the memory decides nothing"


@pytest.mark.parametrize(("name", "index"), [("auto", None), ("cuda", None), ("cuda:0", 0)])
def test_a_gpu_is_taken_by_its_number_or_is_the_current_one(
    name: str, index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # there is no GPU to put it on
    # What torch.cuda.set_device calls: that function itself is torch's, which takes no device without a number.
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    device = choose_device(name)
    assert (device.type, device.index) == ("cuda", index)
    assert chosen == ([] if index is None else [index])


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
