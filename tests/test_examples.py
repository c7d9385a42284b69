"""The examples run, are short, and do what they say on images where the answer is known."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import cjepa
from cjepa.build import read_config
from cjepa.config.presets import resolve
from cjepa.data import decode
from cjepa.data.crops import centre_crop
from cjepa.export.safetensors_folder import SafetensorsConfig
from cjepa.runs import export_run, pretrain
from tests.tiny_runs import write_config, write_images

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TINY = (
    "training.epochs=1",
    "training.batch_size=16",
    "training.device=cpu",
    "training.optimizer.learning_rate.warmup_epochs=0.3",
    "model.predictor.width=16",
    "model.predictor.depth=1",
    "model.predictor.heads=2",
)


def example(name: str) -> ModuleType:
    path = next(path for path in EXAMPLES if path.stem == name)
    specification = importlib.util.spec_from_file_location(f"examples_{name}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 noisy images of three colours, which any encoder tells apart: the examples are tested, not the training."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    random = np.random.default_rng(0)
    for number, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for index in range(16):
            pixels = random.normal(90, 30, (16, 16, 3))
            pixels[..., number] += 100
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    pretrain(resolve(str(write_config(folder)), [f"data={images}"]), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_has_at_most_sixty_lines_and_a_test(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"python examples/{path.name}" in text
    assert f'example("{path.stem}")' in Path(__file__).read_text(encoding="utf-8")


def test_classify(run: Path, images: Path) -> None:
    assert example("classify").main(run, images) > 0.9, "three colours; chance is a third"


def test_classify_crops_as_the_encoder_says(run: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = cjepa.load_encoder(run)
    encoder.evaluation_crop = 0.5
    monkeypatch.setattr(cjepa, "load_encoder", lambda _: encoder)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(encoder, "embed", lambda batch: seen.append(batch) or torch.randn(1, 32))
    example("classify").main(run, images)
    first = decode(images / "a" / "0000.png", 10**6)
    np.testing.assert_array_equal(seen[0][0].numpy(), centre_crop(first, encoder.image_size, 0.5))


@pytest.mark.parametrize(("classes", "count"), [(("a",), 8), (("a", "b"), 1), (("a", "b", "c"), 2)])
def test_classify_says_what_it_needs(run: Path, tmp_path: Path, classes: tuple[str, ...], count: int) -> None:
    with pytest.raises(SystemExit, match="two classes or more, with about four images in each"):
        example("classify").main(run, write_images(tmp_path / "photos", classes, count))


def test_near_duplicates(run: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", ("",), 20)
    with Image.open(folder / "0005.png") as image:
        pixels = np.asarray(image).astype(np.int16)
    noise = np.random.default_rng(0).integers(-2, 3, pixels.shape)
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(folder / "copy.png")
    (folder / "broken.png").write_bytes(b"nothing")
    one, other, similarity = example("near_duplicates").main(run, folder, 0.9)[0]
    assert {one, other} == {"0005.png", "copy.png"}
    assert similarity > 0.9


def test_semantic_search(run: Path, images: Path) -> None:
    search = example("semantic_search")
    found = search.main(run, images, images / "b" / "1003.png")
    assert found[0] == "b/1003.png", "an image is most like itself"
    assert sum(name.startswith("b/") for name in found) == 5
    assert images.with_suffix(".safetensors").exists()
    assert search.main(run, images, images / "b" / "1003.png") == found


def test_semantic_search_keeps_folders_with_dots_apart(run: Path, tmp_path: Path) -> None:
    search = example("semantic_search")
    for seed, name in enumerate(("holiday.2023", "holiday.2024")):
        folder = write_images(tmp_path / name, (name,), 3, seed)
        found = search.main(run, folder, folder / name / "0001.png")
        assert found[0] == f"{name}/0001.png"
        assert all(each.startswith(f"{name}/") for each in found)


def test_semantic_search_in_the_working_directory(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "photos", ("",), 3)
    monkeypatch.chdir(folder)
    assert example("semantic_search").main(run, Path(), Path("0001.png"))[0] == "0001.png"
    assert (tmp_path / "photos.safetensors").exists()


def test_the_snippets_of_the_readme(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        shapes = [tuple(names[name].shape) for name in ("patches", "embeddings")]  # type: ignore[attr-defined]
        assert shapes == [(8, 24 * 24, 32), (8, 32)], "96 pixels in patches of 4, of an encoder of width 32"


def test_segment(run: Path, tmp_path: Path) -> None:
    """The left half is one texture and the right half another."""
    rows, columns = np.mgrid[:32, :64]
    pixels = np.where(columns < 32, 60 + 20 * np.sin(rows), 200 + 40 * np.sin(2 * columns))
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=2).astype(np.uint8)).save(tmp_path / "in.png")
    labels = example("segment").main(run, tmp_path / "in.png", tmp_path / "out.png", 2)
    assert labels.shape == (8, 16)
    sides = labels[:, :7], labels[:, 9:]
    assert [len(np.unique(side)) for side in sides] == [1, 1]
    assert sides[0][0, 0] != sides[1][0, 0]
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (64, 32)


def test_continue_pretraining(run: Path, images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    export_run(run, SafetensorsConfig(), weights)
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps(config | {"evaluation_crop": 0.75}))
    outcome = example("continue_pretraining").main(weights, images, tmp_path / "further", [*TINY])
    assert outcome.steps == 3
    assert (tmp_path / "further" / "start.json").exists()
    assert read_config(tmp_path / "further").data.evaluation_crop == 0.75


def test_custom_objective(images: Path) -> None:
    """In a process of its own: the shape checks of the tests allow the package's own objectives only."""
    assert example("custom_objective").main
    path = next(path for path in EXAMPLES if path.stem == "custom_objective")
    changes = [*TINY, "data.image_size=16", "model.encoder=tiny", "model.encoder.depth=1", "model.encoder.patch_size=4"]
    command = [sys.executable, str(path), str(images), "3", *changes]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert all("'decorrelation': " in line and "nan" not in line for line in lines)
