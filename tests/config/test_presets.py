"""The presets: complete, documented, and those of the paper with the paper's numbers."""

import re
from pathlib import Path

import pytest

from cjepa.config import RunConfig, describe_keys, differences, dump_yaml
from cjepa.config.presets import preset_names, preset_summary, preset_text, resolve
from cjepa.errors import InputError


def test_the_presets_that_are_promised_exist() -> None:
    paper = {f"imagenet-vit-{size}" for size in "tsbl"}
    assert set(preset_names()) == {"demo", "camvid", "cifar10", "cifar10-small", "small-96", "small-224"} | paper


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_complete_and_says_what_it_is(name: str, tmp_path: Path) -> None:
    config = resolve(name)
    assert config == resolve(name, ["seed=0"])
    header = preset_text(name).partition("\ndata:")[0]
    assert header.startswith(f"# {preset_summary(name)}\n")
    assert len(preset_summary(name)) > 20
    assert all(f"# {entry}:" in header for entry in ("Command", "Hardware", "Time", "Result")), header
    command = re.search(r"cjepa (?:pretrain )?(\S+)", header)
    assert command is not None
    assert name in header.partition("Hardware")[0]
    file = tmp_path / "again.yaml"
    file.write_text(dump_yaml(config))
    assert resolve(str(file)) == config


@pytest.mark.parametrize(
    ("size", "encoder", "predictor_depth", "epochs"),
    [
        ("t", (192, 12, 3), 6, 600),
        ("s", (384, 12, 6), 6, 100),
        ("b", (768, 12, 12), 6, 600),
        ("l", (1024, 24, 16), 12, 600),
    ],
)
def test_the_paper_s_recipes(size: str, encoder: tuple[int, int, int], predictor_depth: int, epochs: int) -> None:
    config = resolve(f"imagenet-vit-{size}")
    model, training = config.model, config.training
    assert (model.encoder.width, model.encoder.depth, model.encoder.heads) == encoder
    assert (model.encoder.patch_size, config.data.size) == (16, (224, 224))
    assert (model.predictor.width, model.predictor.depth, model.predictor.heads) == (384, predictor_depth, None)
    assert (training.epochs, training.batch_size) == (epochs, 2048)
    rate = training.optimizer.learning_rate
    assert (rate.start, rate.peak, rate.final, rate.warmup_epochs) == (1e-4, 1e-3, 1e-6, 15)
    assert (training.optimizer.weight_decay.start, training.optimizer.weight_decay.final) == (0.04, 0.4)
    assert (training.momentum.start, training.momentum.final) == (0.996, 1.0)
    assert (config.data.crop_scale, config.data.flip, config.data.evaluation_crop) == ((0.3, 1.0), False, 0.875)
    assert config.objective.name == "cjepa"
    assert config.objective.beta == 0.001
    masking = config.masking
    assert (masking.targets, masking.target_area, masking.context_area) == (4, (0.15, 0.2), (0.85, 1.0))
    assert resolve(f"imagenet-vit-{size}", ["masking=reference"]).masking.name == "reference"


def test_attention_of_the_predictor_is_a_key(tmp_path: Path) -> None:
    """Runs of before the key existed had full attention."""
    file, key = tmp_path / "config.yaml", "model.predictor.attention"
    plain, one_way = resolve("demo"), resolve("demo", [f"{key}=one_way"])
    assert (plain.model.predictor.attention, one_way.model.predictor.attention) == ("full", "one_way")
    assert differences(plain, one_way) == [f"{key}: full -> one_way"]
    file.write_text(dump_yaml(one_way))
    assert resolve(str(file)) == one_way
    file.write_text(dump_yaml(one_way).replace("    attention: one_way\n", ""))
    assert resolve(str(file)) == plain
    with pytest.raises(InputError, match=key):
        resolve("demo", [f"{key}=causal"])


def test_a_file_wins_over_nothing_and_a_preset_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("data: {source: {name: demo}}\nseed: 7")
    Path("demo").write_text("seed: 8")
    assert resolve("mine.yaml").seed == 7
    assert resolve("demo").seed == 0


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("cifar", "did you mean cifar10"),
        ("imagenet-vit-x", "did you mean imagenet-vit-"),
        ("zebra", "presets are camvid, cifar10, cifar10-small"),
        ("missing.yaml", "cannot read missing.yaml"),
        (".", "is a folder; give a preset"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_is_neither_preset_nor_file(
    origin: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        resolve(origin)


def test_defaults_are_accepted_as_the_help_shows_them() -> None:
    """Of the groups that no variant takes a key from; a list of groups, too, is on one line."""
    groups = ("seed", "training", "monitor", "logging")
    rows = [row for row in describe_keys(RunConfig) if row.key.split(".")[0] in groups]
    for row in rows:
        assert "\n" not in row.default, row
        assert resolve("imagenet-vit-b", [f"{row.key}={row.default}"]), row
    assert any(row.default.startswith("[{name: linear, ") for row in rows)
