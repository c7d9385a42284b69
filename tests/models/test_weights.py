"""Weights from elsewhere: what is read equals the plain reference, and what does not fit is listed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import cjepa
from cjepa.errors import InputError
from cjepa.models import EncoderConfig, VisionTransformer
from cjepa.models.pretrained import normalise
from cjepa.models.vit import SIZES
from cjepa.models.weights import open_weights
from cjepa.models.weights.contents import IMAGENET_MEAN, IMAGENET_STD
from cjepa.models.weights.fitting import find_positions
from cjepa.models.weights.folder import write_folder
from cjepa.models.weights.names import scaled_positions, to_transformers, to_vit
from tests.encoders import CONFIG, pixels, pretrained, transformer

timm = pytest.importorskip("timm", reason="timm is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def meta_layout(seed: int = 0, prefix: str = "module.") -> dict[str, Tensor]:
    """Random weights with the names and shapes of Meta's released encoders, made by timm's transformer."""
    torch.manual_seed(seed)
    weights = timm_model().state_dict()
    weights = {name: value + 0.1 * torch.randn(value.shape) for name, value in weights.items() if name != "pos_embed"}
    return {
        f"{prefix}{name}": value for name, value in (weights | {"pos_embed": scaled_positions(CONFIG, (6, 6))}).items()
    }


def timm_model(**changes: object) -> torch.nn.Module:
    arguments = {"patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4, "img_size": 24, "num_classes": 0}
    gap = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    return timm.models.vision_transformer.VisionTransformer(**(arguments | gap | changes)).eval()


def write_meta(path: Path, **changes: object) -> Path:
    content = {
        "encoder": meta_layout(0),
        "predictor": {"module.predictor_embed.weight": torch.zeros(4, 48)},
        "opt": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "scaler": None,
        "target_encoder": meta_layout(1),
        "epoch": 300,
        "loss": 0.2,
        "batch_size": 16,
        "world_size": 16,
        "lr": 1e-6,
    }
    torch.save(content | changes, path)
    return path


@torch.no_grad()
def reference(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    model = timm_model()
    model.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    return model.forward_features(images)


def test_a_released_checkpoint(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "IN1K-vit.h.14-300e.pth.tar")
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    for which, seed in (("target", 1), ("context", 0)):
        encoder = cjepa.load_encoder(path, encoder=which, heads=4)  # type: ignore[arg-type]
        torch.testing.assert_close(encoder(images), reference(meta_layout(seed), images), atol=1e-5, rtol=1e-5)
        assert encoder.image_size == (24, 24)
        assert encoder.encoder.config.position_scale == 1.0
    assert open_weights(path, 4).format == "I-JEPA checkpoint"


def test_heads_that_timm_s_own_folder_leaves_to_its_name(tmp_path: Path) -> None:
    """timm's base model without class token has 16 heads; the named size of its width has 12."""
    changes = {"depth": 1, "img_size": 32, "num_classes": 0}
    model = timm.create_model("vit_base_patch16_gap_224", **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        model.pos_embed.copy_(scaled_positions(EncoderConfig(width=768, heads=16), (2, 2)))
    timm.models.save_for_hf(model, str(tmp_path), model_args=changes, safe_serialization=True)
    encoder = cjepa.load_encoder(tmp_path)
    assert encoder.encoder.config.heads == 16
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), model.forward_features(images), atol=1e-4, rtol=1e-4)


def test_heads_that_a_file_names_are_not_those_of_a_config(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "timm", "timm", {})
    assert open_weights(folder, heads=8).config.heads == 4
    weights = to_vit(transformer().state_dict(), CONFIG, (6, 6))
    save_file(weights, tmp_path / "vit.safetensors", metadata={"heads": "4"})
    assert open_weights(tmp_path / "vit.safetensors", heads=8).config.heads == 4


@pytest.mark.parametrize("argument", [{"act_layer": "relu"}, {"norm_layer": "rmsnorm"}])
def test_timm_s_arguments_that_our_encoder_has_not(argument: dict[str, str], tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "timm", "timm", {})
    values = json.loads((folder / "config.json").read_text())
    values["model_args"] |= {"act_layer": None} | argument
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"an encoder with .*='r.*' instead of .* cannot be used here"):
        open_weights(folder)


def test_positions_that_the_moving_average_of_a_training_has_moved(tmp_path: Path) -> None:
    """Meta's target encoder averages its fixed positions too, in float32: each step rounds, and the sums wander.

    Its schedule does that over 10^5 steps; 5,000 at the momentum of its end move them as far.
    """
    context, target = meta_layout(0), meta_layout(1)
    fixed, moved, momentum = context["module.pos_embed"], target["module.pos_embed"], 1 - 3e-6
    for _ in range(5000):
        moved.mul_(momentum).add_((1.0 - momentum) * fixed)
    assert 1e-4 < (moved - fixed).abs().max() < 5e-4
    path = write_meta(tmp_path / "IN1K-vit.h.14-300e.pth.tar", encoder=context, target_encoder=target)
    found = open_weights(path, 4)
    assert (found.config.position_scale, found.preparation.image_size) == (1.0, (24, 24))
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    encoder = cjepa.load_encoder(path, heads=4)
    torch.testing.assert_close(encoder(images), reference(target, images), atol=1e-3, rtol=1e-3)


def test_small_learned_positions_are_not_taken_for_sin_cos_ones_times_nothing(tmp_path: Path) -> None:
    weights = to_vit(transformer().state_dict(), CONFIG, (6, 6))
    weights["pos_embed"] = 1e-3 * torch.randn(1, 36, 48, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        save_file({name: value.to(dtype) for name, value in weights.items()}, tmp_path / "vit.safetensors")
        with pytest.raises(InputError, match="are not the fixed sin-cos ones"):
            open_weights(tmp_path / "vit.safetensors", 4)


def test_half_precision_and_plain_state_dictionaries(tmp_path: Path) -> None:
    weights = meta_layout(2, prefix="")
    torch.save({"state_dict": {name: value.bfloat16() for name, value in weights.items()}}, tmp_path / "half.pt")
    torch.save(weights, tmp_path / "plain.bin")
    half, plain = (cjepa.load_encoder(tmp_path / name, heads=4) for name in ("half.pt", "plain.bin"))
    assert half.encoder.patch_projection.weight.dtype == torch.float32
    torch.testing.assert_close(half(pixels()), plain(pixels()), atol=0.1, rtol=0.1)
    assert half.encoder.config == plain.encoder.config


def test_an_ijepa_model_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.IJepaConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=24,
        patch_size=4,
        layer_norm_eps=1e-6,
    )
    model = transformers.IJepaModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
            if name == "embeddings.position_embeddings":
                parameter.copy_(scaled_positions(CONFIG, (6, 6)))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]})
    )
    encoder = cjepa.load_encoder(tmp_path)
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), model(images).last_hidden_state, atol=1e-5, rtol=1e-5)
    assert (encoder.mean, encoder.encoder.config.mlp_ratio) == ((0.5, 0.5, 0.5), 2.0)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"layer_norm_eps": 1e-12, "hidden_act": "relu"}))
    with pytest.raises(InputError, match=r"hidden_act='relu' instead of 'gelu', layer_norm_eps=1e-12 instead of 1e-06"):
        cjepa.load_encoder(tmp_path)


def test_a_timm_transformer_with_fixed_positions(tmp_path: Path) -> None:
    model = timm_model(img_size=(16, 32))
    with torch.no_grad():
        model.pos_embed.copy_(0.5 * scaled_positions(CONFIG, (4, 8)))
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    encoder = cjepa.load_encoder(tmp_path / "vit.safetensors", heads=4)
    images = torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), model.forward_features(images), atol=1e-5, rtol=1e-5)
    assert encoder.image_size == (16, 32), "the positions say which grid it is"
    assert encoder.encoder.config.position_scale == pytest.approx(0.5)


def test_learned_positions_are_refused_with_the_difference(tmp_path: Path) -> None:
    save_file(timm_model().state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(
        InputError, match=r"36 positions are not the fixed sin-cos ones \(the closest grid, .* differs by"
    ):
        cjepa.load_encoder(tmp_path / "vit.safetensors", heads=4)


def test_a_class_token_is_named(tmp_path: Path) -> None:
    save_file(timm_model(class_token=True).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(InputError, match=r"not of this encoder: cls_token \[1, 1, 48\]"):
        cjepa.load_encoder(tmp_path / "vit.safetensors", heads=4)


def test_every_mismatch_is_listed(tmp_path: Path) -> None:
    weights = to_vit(transformer().state_dict(), CONFIG, (6, 6))
    del weights["blocks.1.norm2.bias"]
    weights["head.weight"] = torch.zeros(10, 48)
    weights["norm.weight"] = torch.zeros(47)
    save_file(weights, tmp_path / "vit.safetensors")
    with pytest.raises(InputError) as caught:
        cjepa.load_encoder(tmp_path / "vit.safetensors", heads=4)
    message = str(caught.value)
    assert "missing: blocks.1.norm2.bias [48]" in message
    assert "not of this encoder: head.weight [10, 48]" in message
    assert "another shape: norm.weight is [47], must be [48]" in message
    assert "nothing was loaded" in message


def test_a_missing_third_of_a_projection_is_a_mismatch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.IJepaModel(
        transformers.IJepaConfig(
            hidden_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=24, patch_size=4, layer_norm_eps=1e-6
        )
    )
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "key" in name or "k_proj" in name)
    save_file({name: value for name, value in weights.items() if name != gone}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"missing: blocks\.0\.attn\.qkv"):
        cjepa.load_encoder(tmp_path)


def test_heads_are_asked_for_where_nothing_tells_them(tmp_path: Path) -> None:
    torch.save(meta_layout(), tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"a width of 48 is that of no named size; state them: --heads"):
        cjepa.load_encoder(tmp_path / "odd.pth")
    config = EncoderConfig(width=192, depth=1, heads=3, patch_size=4)
    save_file(to_vit(transformer(config).state_dict(), config, (2, 2)), tmp_path / "tiny.safetensors")
    assert cjepa.load_encoder(tmp_path / "tiny.safetensors").encoder.config.heads == 3


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (16, 16), (28, 28), (2, 9)])
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0])
def test_positions_tell_grid_and_scale(grid: tuple[int, int], scale: float) -> None:
    config = CONFIG.model_copy(update={"position_scale": scale})
    found = find_positions(scaled_positions(config, grid), "file")
    assert found.scale == pytest.approx(scale)
    assert scale == 0 or found.grid == grid


def test_ratios_of_released_sizes_give_their_hidden_width_back(tmp_path: Path) -> None:
    """Meta's ViT-g has 6144 hidden units at a width of 1408; 6144 / 1408 is no round number."""
    for width in (1408, 176, 44):
        hidden = width * 48 // 11
        config = EncoderConfig(width=width, depth=1, heads=4, patch_size=2, mlp_ratio=48 / 11 + 1e-9)
        weights = to_vit(transformer(config).state_dict(), config, (1, 1))
        save_file(weights, tmp_path / "g.safetensors")
        read = open_weights(tmp_path / "g.safetensors", 4)
        assert int(width * read.config.mlp_ratio) == hidden
    assert {size[2] for size in SIZES.values()} == {3, 6, 12, 16}


def test_a_ratio_that_makes_no_whole_number_of_hidden_units_is_read_back(tmp_path: Path) -> None:
    config = EncoderConfig(width=48, depth=1, heads=4, patch_size=4, mlp_ratio=2.7)  # 129 units, not 129.6
    ours = pretrained()
    write_folder(tmp_path, config, ours.preparation, VisionTransformer(config).state_dict())
    assert cjepa.load_encoder(tmp_path).encoder.config == config


def test_our_folder_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    ours = pretrained(crop=0.9)
    write_folder(tmp_path, ours.encoder.config, ours.preparation, ours.encoder.state_dict())
    again = cjepa.load_encoder(tmp_path)
    assert torch.equal(again(pixels()), ours(pixels()))
    assert again.preparation == ours.preparation
    assert again.encoder.config == ours.encoder.config
    values = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"cjepa_format": 9}, "cjepa_format 9 is unknown to this version"),
        ({"mean": [1, 2]}, "mean"),
        ({"encoder": values["encoder"] | {"depth": 10**9}}, r"of another encoder .*depth 1000000000, not 3"),
        ({"encoder": values["encoder"] | {"mlp_ratio": 2.0}}, r"of another encoder .*mlp_ratio 2\.0, not 4\.0"),
        ({"encoder": values["encoder"] | {"mlp_ratio": 1e30}}, r"of another encoder .*mlp_ratio 1e\+30, not 4\.0"),
        ({"std": [0.2, 0.0, 0.2]}, r"std\.1: Input should be greater than 0"),
        ({"image_size": [0, 24]}, r"image_size\.0: Input should be greater than or equal to 1"),
        ({"image_size": [24, 25]}, "24 x 25 pixels cannot be cut into patches of 4"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values | changes))
        with pytest.raises(InputError, match=message):
            cjepa.load_encoder(tmp_path)


def write_foreign(folder: Path, name: str, prepared: dict[str, object]) -> Path:
    """A folder of timm or transformers whose preparation of images says this."""
    weights = transformer().state_dict()
    folder.mkdir()
    if name == "timm":
        save_file(to_vit(weights, CONFIG, (6, 6)), folder / "model.safetensors")
        values = {"architecture": "vit", "model_args": {"num_heads": 4}, "pretrained_cfg": prepared}
    else:
        model = transformers.IJepaModel(
            transformers.IJepaConfig(
                hidden_size=48, num_hidden_layers=3, intermediate_size=192, image_size=24, patch_size=4
            )
        )
        save_file(to_transformers(weights, model.state_dict(), CONFIG, (6, 6)), folder / "model.safetensors")
        values = {"model_type": "ijepa", "num_attention_heads": 4}
        (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("timm", "mean", "std"), ("transformers", "image_mean", "image_std")]
)
def test_normalisations_that_a_foreign_config_states(tmp_path: Path, name: str, mean: str, std: str) -> None:
    half = {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
    found = open_weights(write_foreign(tmp_path / "half", name, half))
    assert (found.preparation.mean, found.preparation.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert found.states_normalisation
    silent = open_weights(write_foreign(tmp_path / "silent", name, {}))
    assert (silent.preparation.mean, silent.preparation.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert not silent.states_normalisation
    for number, (wrong, message) in enumerate(
        (
            ({std: [0.5, 0, 0.5]}, r"deviation must be .* greater than 0; correct the file"),
            ({std: [0.5, float("nan"), 0.5]}, "deviation must be .* finite number"),
            ({mean: [float("inf"), 0.5, 0.5]}, "mean must be .* finite number"),
            ({mean: [10**400, 0.5, 0.5]}, "mean must be one number for each of three colours"),
            ({mean: 0.5}, "mean must be one number for each of three colours"),
            ({mean: [0.5]}, "mean must be one number for each of three colours"),
        )
    ):
        with pytest.raises(InputError, match=message):
            open_weights(write_foreign(tmp_path / str(number), name, half | wrong))


def test_an_image_processor_s_crop_and_missing_normalisation(tmp_path: Path) -> None:
    """The crop is a share of the side that its own config resizes to, whatever size the positions are of."""
    crop = {"do_center_crop": True, "size": {"shortest_edge": 16}, "crop_size": {"height": 14, "width": 14}}
    found = open_weights(write_foreign(tmp_path / "crop", "transformers", crop)).preparation
    assert (found.image_size, found.evaluation_crop) == ((24, 24), 14 / 16)
    off = {"do_normalize": False, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    found = open_weights(write_foreign(tmp_path / "off", "transformers", off)).preparation
    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "how", [{"rescale_factor": 1 / 127.5}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5, "do_normalize": False}]
)
def test_pixels_that_an_image_processor_scales_otherwise(tmp_path: Path, how: dict[str, object]) -> None:
    """Ours are divided by 255; mean and deviation change so that inputs are those of transformers' own processor."""
    values = {"do_resize": False, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]} | how
    found = open_weights(write_foreign(tmp_path / "weights", "transformers", values)).preparation
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    theirs = transformers.ViTImageProcessor(**values)(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalise(images, found.mean, found.std), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("factor", [0, -1.0, "x", True])
def test_a_factor_for_pixels_that_is_none(tmp_path: Path, factor: object) -> None:
    with pytest.raises(InputError, match="rescale_factor must be a positive number"):
        open_weights(write_foreign(tmp_path / "weights", "transformers", {"rescale_factor": factor}))


def test_shapes_and_positions_of_no_encoder(tmp_path: Path) -> None:
    weights = to_vit(transformer().state_dict(), CONFIG, (6, 6))
    for number, (changes, message) in enumerate(
        (
            ({"patch_embed.proj.weight": torch.zeros(0, 48)}, "its embeddings have no features"),
            ({"pos_embed": -weights["pos_embed"]}, "are not the fixed sin-cos ones"),
            ({"pos_embed": weights["pos_embed"] * torch.nan}, "are not the fixed sin-cos ones"),
            ({"pos_embed": torch.zeros(1, 0, 48)}, "its 0 positions are not"),
        )
    ):
        save_file(weights | changes, tmp_path / f"{number}.safetensors")
        with pytest.raises(InputError, match=message):
            open_weights(tmp_path / f"{number}.safetensors", 4)


def test_paths_that_are_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.txt").write_text("")
    for path, message in (
        (tmp_path, "is of no known encoder"),
        (tmp_path / "weights.txt", "no file of weights by its name"),
        (tmp_path / "nothing", "is not a run folder"),
    ):
        with pytest.raises(InputError, match=message):
            cjepa.load_encoder(path)
