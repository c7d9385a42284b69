"""Every format is opened by the library it is for; what it computes is compared with the encoder here."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import cjepa
from cjepa.config import parts_of
from cjepa.data.crops import centre_crop
from cjepa.errors import InputError
from cjepa.export import (
    EXTRAS,
    AnyExport,
    Export,
    ExportConfig,
    OnnxConfig,
    ParityError,
    ProgramConfig,
    SafetensorsConfig,
    TimmConfig,
    TransformersConfig,
    export_encoder,
    onnx_file,
    timm_file,
    transformers_folder,
)
from cjepa.export.parity import Difference, compare
from cjepa.export.traceable import TraceableEncoder
from cjepa.models import EncoderConfig
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.models.weights import open_weights
from tests.encoders import CONFIG, MEAN, STD, pixels, pretrained, transformer

SCALED = CONFIG.model_copy(update={"position_scale": 0.5})
IMAGES = normalise(pixels(), MEAN, STD)


@pytest.fixture(scope="module")
def encoder() -> PretrainedEncoder:
    return pretrained(SCALED, crop=0.75)


def write(config: AnyExport, encoder: PretrainedEncoder, folder: Path) -> Export:
    with warnings.catch_warnings():  # of the other libraries
        warnings.simplefilter("ignore")
        return export_encoder(config, encoder, folder, lambda usage: f"# Card\n\n{usage}\n")


@pytest.fixture(scope="module")
def exported(encoder: PretrainedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Callable[[AnyExport], Export]:
    """Each format is written once: tracing a graph takes seconds."""
    folder, done = tmp_path_factory.mktemp("exports"), dict[str, Export]()

    def exported(config: AnyExport) -> Export:
        if config.name not in done:
            done[config.name] = write(config, encoder, folder / config.name / "out")
        return done[config.name]

    return exported


@pytest.mark.parametrize("part", parts_of(ExportConfig), ids=lambda part: part.model_fields["name"].default)
def test_every_format_passes_its_check_and_brings_its_card(
    part: type[Any], exported: Callable[[AnyExport], Export]
) -> None:
    written = exported(part())
    assert written.differences
    assert all(each.fits for each in written.differences)
    assert {path.name for path in written.folder.iterdir()} == set(written.files) >= {"README.md"}
    card = (written.folder / "README.md").read_text()
    assert str(written.folder) not in card, "the card names no folder of this machine"
    assert str(written.folder) in written.usage
    assert [path.name for path in written.folder.parent.iterdir()] == ["out"], "nothing unfinished is left"


def test_transformers_opens_the_folder(encoder: PretrainedEncoder, exported: Callable[[AnyExport], Export]) -> None:
    transformers = pytest.importorskip("transformers")
    written = exported(TransformersConfig())
    model = transformers.AutoModel.from_pretrained(written.folder).eval()
    assert isinstance(model, transformers.IJepaModel)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES).last_hidden_state, encoder(IMAGES), atol=1e-5, rtol=1e-5)
    again = cjepa.load_encoder(written.folder)
    torch.testing.assert_close(again(IMAGES), encoder(IMAGES))
    assert again.preparation == encoder.preparation


@pytest.mark.parametrize("config", [SafetensorsConfig(), TransformersConfig(), TimmConfig()])
def test_an_export_knows_the_random_start(config: AnyExport, tmp_path: Path) -> None:
    """Evaluations compare with it, and with small patches the paper's is a weaker one."""
    encoder = pretrained(CONFIG.model_copy(update={"patch_projection": "unit_variance"}))
    folder = write(config, encoder, tmp_path / "out").folder
    assert cjepa.load_encoder(folder).encoder.config.patch_projection == "unit_variance"
    if isinstance(config, TransformersConfig):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"cjepa_patch_projection": ["nonsense"]}))
        assert cjepa.load_encoder(folder).encoder.config.patch_projection == "reference"


@pytest.mark.parametrize("config", [SafetensorsConfig(), TransformersConfig(), TimmConfig()])
def test_an_export_knows_that_the_random_start_was_divided_by_depth(config: AnyExport, tmp_path: Path) -> None:
    encoder = pretrained(CONFIG.model_copy(update={"rescale_depth": True}))
    assert cjepa.load_encoder(write(config, encoder, tmp_path / "out").folder).encoder.config.rescale_depth


@pytest.mark.parametrize("size", [(16, 16), (16, 32)])
@pytest.mark.parametrize(
    ("config", "opened"),
    [(SafetensorsConfig(), "."), (TransformersConfig(), "."), (TimmConfig(), "."), (TimmConfig(), "model.safetensors")],
)
def test_what_was_written_is_prepared_for_as_it_was(
    config: AnyExport, opened: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Other means and deviations are other images to an encoder, and nothing would say so."""
    encoder = pretrained(size=size)
    encoder.mean, encoder.std, encoder.evaluation_crop = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 0.5
    folder = write(config, encoder, tmp_path / "out").folder
    assert open_weights(folder / opened).preparation == encoder.preparation
    assert open_weights(folder / opened).states_normalisation


@pytest.mark.parametrize("share", [0.9, 0.95])
def test_a_share_that_a_processor_rounds_to_pixels_comes_back(share: float, tmp_path: Path) -> None:
    written = write(TransformersConfig(), pretrained(crop=share), tmp_path / "out")
    assert open_weights(written.folder).preparation.evaluation_crop == share
    path = written.folder / "preprocessor_config.json"
    changed = json.loads(path.read_text()) | {"size": {"shortest_edge": 32}, "image_mean": [0.0, 0.0, 0.0]}
    path.write_text(json.dumps(changed))
    assert open_weights(written.folder).preparation.evaluation_crop == 24 / 32
    assert open_weights(written.folder).preparation.mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("noted", ["nonsense", "[1, 2]", '{"mean": [0.1, 0.2, 0.3], "std": [0.0, 1.0, 1.0]}'])
def test_a_preparation_that_cannot_be_is_not_taken(noted: str, tmp_path: Path) -> None:
    write(TimmConfig(), pretrained(), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt", "heads": str(CONFIG.heads), "cjepa_preparation": noted})
    with pytest.raises(InputError, match="cjepa_preparation"):
        open_weights(path)


def test_the_lines_of_the_card_lead_from_an_image_to_patches(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    encoder = pretrained(size=(32, 32))
    written = write(TransformersConfig(), encoder, tmp_path / "out")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    scope: dict[str, Any] = {"image": image}
    exec(written.usage, scope)
    ours = encoder(torch.from_numpy(centre_crop(image, (32, 32), encoder.evaluation_crop))[None])
    torch.testing.assert_close(scope["patches"], ours, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.875, 0.9])
def test_its_processor_prepares_photographs_as_we_do(share: float, tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    transformers = pytest.importorskip("transformers")
    encoder = pretrained(EncoderConfig(width=16, depth=1, heads=2, patch_size=16), (112, 112), share)
    write(TransformersConfig(), encoder, tmp_path / "out")
    prepare = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for pixels_ in (data.astronaut(), data.coffee(), data.chelsea(), data.coffee()[:397, :301]):
        image = Image.fromarray(pixels_)
        ours = torch.from_numpy(centre_crop(image, (112, 112), share)).float()
        theirs = ((prepare(images=image, return_tensors="pt")["pixel_values"][0] * std + mean) * 255).round()
        outside = transformers_folder.outside_neighbours(ours, theirs)
        assert outside <= transformers_folder.SHIFT_TOLERANCE, outside
        if share != 0.9 and image.size == (512, 512):
            assert (theirs - ours).abs().max() <= transformers_folder.PIXEL_TOLERANCE
    ours = torch.from_numpy(centre_crop(Image.fromarray(data.coffee()), (112, 112), share)).float()
    moved = ours.roll(3, dims=2)
    assert transformers_folder.outside_neighbours(ours, moved) > transformers_folder.SHIFT_TOLERANCE, "it can fail"


def test_images_that_are_not_square_have_no_processor(tmp_path: Path) -> None:
    written = write(TransformersConfig(), pretrained(size=(16, 32)), tmp_path / "out")
    assert "preprocessor_config.json" not in written.files
    assert "AutoImageProcessor" not in written.usage


def test_timm_opens_the_file_as_documented(encoder: PretrainedEncoder, exported: Callable[[AnyExport], Export]) -> None:
    pytest.importorskip("timm")
    written = exported(TimmConfig())
    scope: dict[str, Any] = {"images": IMAGES}
    exec(written.usage, scope)  # the lines that the card shows
    with torch.no_grad():
        torch.testing.assert_close(scope["model"].eval()(IMAGES), encoder.embed(IMAGES), atol=1e-5, rtol=1e-5)
    again = cjepa.load_encoder(written.folder)
    assert again.preparation == encoder.preparation
    assert again.encoder.config == encoder.encoder.config
    alone = cjepa.load_encoder(written.folder / "model.safetensors")
    torch.testing.assert_close(alone(IMAGES), encoder(IMAGES))


def test_stock_names_of_timm_are_what_the_table_says() -> None:
    timm = pytest.importorskip("timm")
    for name, sizes in timm_file.STOCK.items():
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=0, depth=1)
            deep = timm.create_model(name, pretrained=False, num_classes=0)
        assert model.embed_dim == sizes["embed_dim"]
        assert len(deep.blocks) == sizes["depth"]
        assert model.blocks[0].attn.num_heads == sizes["num_heads"]
        assert model.patch_embed.patch_size == (sizes["patch_size"],) * 2
        assert model.patch_embed.img_size == (sizes["img_size"],) * 2
        assert model.blocks[0].mlp.fc1.out_features == int(sizes["embed_dim"] * sizes.get("mlp_ratio", 4.0))
        assert (model.cls_token, model.num_prefix_tokens) == (None, 0)


def test_a_stock_size_needs_no_argument_but_num_classes() -> None:
    """The released I-JEPA models have names in timm."""
    huge = EncoderConfig(width=1280, depth=32, heads=16, patch_size=14)
    with torch.device("meta"):
        built = PretrainedEncoder(cjepa.models.VisionTransformer(huge), (224, 224), MEAN, STD)  # type: ignore[attr-defined]
    assert timm_file.architecture(built) == ("vit_huge_patch14_gap_224", {"num_classes": 0})


def test_onnx_takes_any_batch_and_size(encoder: PretrainedEncoder, exported: Callable[[AnyExport], Export]) -> None:
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    written = exported(OnnxConfig())
    path = str(written.folder / onnx_file.MODEL)
    assert [each.version for each in onnx.load(path).opset_import if each.domain == ""] == [20]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 24, 24), (3, 8, 40), (5, 48, 12), (2, 64, 64)):
        images = normalise(pixels(batch, height, width), MEAN, STD)
        patches, pooled = session.run(["patches", "pooled"], {"images": images.numpy()})
        np.testing.assert_allclose(patches, encoder(images).numpy(), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(pooled, encoder.embed(images).numpy(), atol=1e-4, rtol=1e-4)
    shapes = {tuple(map(int, each.what.split(": ")[0].split(" of ")[1].split(" x "))) for each in written.differences}
    assert len(shapes) == 3
    assert any(height != width for height, width in shapes)


def test_a_program_needs_nothing_of_this_package(
    encoder: PretrainedEncoder, exported: Callable[[AnyExport], Export]
) -> None:
    written = exported(ProgramConfig())
    module = torch.export.load(written.folder / "encoder.pt2").module()
    for batch, height, width in ((1, 24, 24), (3, 8, 40)):
        images = normalise(pixels(batch, height, width), MEAN, STD)
        patches, pooled = module(images)
        torch.testing.assert_close(patches, encoder(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pooled, encoder.embed(images), atol=1e-5, rtol=1e-5)


def lines_alone(written: Export, images: Any) -> tuple[Any, Any]:
    """What the lines of the card give for uint8 images, with nothing but the file."""
    scope: dict[str, Any] = {"images": images}
    exec(written.usage, scope)
    assert scope["how"] == {
        "steps": scope["how"]["steps"],
        "image_size": [24, 24],
        "patch_size": 4,
        "evaluation_crop": 0.75,
        "mean": list(MEAN),
        "std": list(STD),
    }
    return scope["patches"], scope["pooled"]


def test_onnx_s_metadata_say_how_to_prepare_images(
    encoder: PretrainedEncoder, exported: Callable[[AnyExport], Export]
) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    written = exported(OnnxConfig())
    noted = {each.key: each.value for each in onnx.load(written.folder / onnx_file.MODEL).metadata_props}
    assert json.loads(noted["cjepa_preparation"])["std"] == list(STD)
    patches, pooled = lines_alone(written, pixels().numpy())
    np.testing.assert_allclose(patches, encoder(pixels()).numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(pooled, encoder.embed(pixels()).numpy(), atol=1e-4, rtol=1e-4)


def test_onnx_s_metadata_are_there_with_weights_in_a_file_beside_it(
    encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_file, "_MOST_IN_ONE_FILE", 0)
    written = write(OnnxConfig(), encoder, tmp_path / "out")
    assert written.files == ["README.md", "model.onnx", "model.onnx.data"]
    patches, _ = lines_alone(written, pixels().numpy())
    np.testing.assert_allclose(patches, encoder(pixels()).numpy(), atol=1e-4, rtol=1e-4)


def test_a_program_s_extra_file_says_how_to_prepare_images(
    encoder: PretrainedEncoder, exported: Callable[[AnyExport], Export]
) -> None:
    patches, pooled = lines_alone(exported(ProgramConfig()), pixels())
    torch.testing.assert_close(patches, encoder(pixels()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, encoder.embed(pixels()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(6, 6), (1, 9), (40, 3)])
def test_the_traceable_encoder_is_the_encoder(grid: tuple[int, int]) -> None:
    built = transformer(SCALED)
    images = torch.randn(2, 3, 4 * grid[0], 4 * grid[1])
    with torch.no_grad():
        torch.testing.assert_close(TraceableEncoder(built)(images)[0], built(images), atol=1e-6, rtol=1e-6)


# --- what fails -----------------------------------------------------------------------------------------------------


def damaged(encoder: PretrainedEncoder, folder: Path, original: Any) -> None:
    """Write, then change one weight of what was written."""
    changed = pretrained(SCALED, crop=0.75)
    with torch.no_grad():
        changed.encoder.blocks[1].attn.proj.bias[0] += 1e-2
    original(changed, folder)


def test_a_difference_fails_the_export_and_leaves_nothing(
    encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = timm_file.write_timm
    monkeypatch.setattr("cjepa.export.write_timm", lambda encoder, folder: damaged(encoder, folder, original))
    with pytest.raises(ParityError, match=r"patch embeddings: largest difference .*tolerated 1e-04") as caught:
        write(TimmConfig(), encoder, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_fail(tmp_path: Path) -> None:
    broken = pretrained()
    with torch.no_grad():
        broken.encoder.norm.bias[0] = torch.nan
    with pytest.raises(ParityError, match="largest difference nan"):
        write(SafetensorsConfig(), broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="exists already; choose a new or empty folder"):
            write(SafetensorsConfig(), encoder, place)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert write(SafetensorsConfig(), encoder, tmp_path / "empty").files


def test_an_empty_folder_is_filled_where_it_is(
    encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory, by its short name, and a mount: neither can be removed and put back."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr(Path, "rmdir", lambda _: pytest.fail("the folder was removed"))
    found = write(SafetensorsConfig(), encoder, Path())
    assert {path.name for path in empty.iterdir()} == set(found.files)
    assert "model.safetensors" in found.files
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_operators_of_a_version_that_the_exporter_cannot_write(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"opset=99 cannot be written by the exporter .* \(it wrote \d+\)"):
        write(OnnxConfig(opset=99), encoder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "module"),
    [(TransformersConfig(), "transformers"), (TimmConfig(), "timm"), (OnnxConfig(), "onnxruntime")],
    ids=["transformers", "timm", "onnx"],
)
def test_a_missing_extra_is_named(
    config: Any, module: str, encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    monkeypatch.setattr("cjepa.export.write_onnx", lambda *_: None)
    with pytest.raises(InputError, match=rf'pip install "cjepa\[{EXTRAS[config.name]}\]"'):
        write(config, encoder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_differences_are_shares_of_the_size() -> None:
    expected = torch.tensor([3.0, -4.0, 0.0, 0.0])
    assert compare("x", expected, expected + torch.tensor([0.0, 0.0, 0.5, 0.0])).largest == pytest.approx(0.2)
    assert not compare("x", expected, expected[:3]).fits
    assert not Difference("x", float("nan"), 1.0).fits
    assert json.dumps(str(Difference("x", 0.5, 1.0)))
