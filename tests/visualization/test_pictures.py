from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from cjepa import visualization
from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.visualization import Examples, Pool, save, spectrum, write_pictures
from cjepa.visualization.pictures import QUERIES
from cjepa.visualization.style import counted, plain

NAMES = ["curves", "masks", "coverage", "patches", "neighbours", "spectrum", "map"]
METRICS = {
    "run": [
        {"step": 0, "split": "evaluation", "knn_20": 30.0, "effective_rank": 4.0},
        {"step": 10, "split": "train", "prediction": 0.3, "covariance": 2.0},
        {"step": 10, "split": "evaluation", "knn_20": 40.0, "effective_rank": 5.0},
    ]
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(count, height, width):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def material(height=16, width=24, labelled=True, examples=2, queries=3, gallery=5):
    grid = (height // 4, width // 4)
    sampler = build_sampler(MultiblockConfig(min_context=1), grid, 0, 8)
    encoders = ("untrained", "C-JEPA")
    patches = {name: random(examples, grid[0] * grid[1], 7, seed=seed) for seed, name in enumerate(encoders)}

    def pool(count):
        labels = np.arange(count) % 3 if labelled else np.full(count, -1)
        return Pool(images(count, height, width), labels, {name: random(count, 7) for name in encoders})

    return {
        "metrics": METRICS,
        "examples": Examples(images(examples, height, width), [sampler(step, 0, 8) for step in range(3)], 4, patches),
        "queries": pool(queries),
        "gallery": pool(gallery),
        "classes": ("cat", "dog", "犬 $x_") if labelled else (),
    }


def test_all_pictures_are_written_wide_enough_and_without_dates_or_versions(tmp_path):
    paths = write_pictures(tmp_path / "run" / "pictures", **material())
    assert [path.name for path in paths] == [f"{name}.png" for name in NAMES]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert 1000 <= picture.width <= 1600
            assert not {"Software", "Creation Time", "date"} & picture.info.keys()
            assert np.asarray(picture.convert("L")).std() > 1


def test_without_masks_both_views_are_drawn_in_their_place(tmp_path):
    changed = material()
    views = images(3, 16, 24), images(3, 16, 24).flip(3)
    changed["examples"] = replace(changed["examples"], masks=(), views=views)
    names = [path.stem for path in write_pictures(tmp_path, **changed)]
    assert names == ["curves", "views", *NAMES[3:]]


def test_equal_material_gives_equal_bytes_whatever_the_users_settings(tmp_path):
    first = write_pictures(tmp_path / "first", **material())
    with mpl.rc_context({"figure.facecolor": "black", "text.color": "white", "font.size": 20, "axes.grid": True}):
        second = write_pictures(tmp_path / "second", **material())
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_the_users_settings_stay_as_they_were(tmp_path):
    before = dict(mpl.rcParams)
    save(spectrum({"encoder": random(9, 4)}), tmp_path / "spectrum.png")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "sizes",
    [
        {"height": 32, "width": 8, "labelled": False},
        {"examples": 1, "queries": 1, "gallery": 1},
        {"examples": 8, "queries": QUERIES + 3, "gallery": 2, "height": 8, "width": 32},
    ],
)
def test_odd_shapes_few_and_unlabelled_images(tmp_path, sizes):
    assert len(write_pictures(tmp_path, **material(**sizes))) == len(NAMES)


def test_an_earlier_picture_is_replaced(tmp_path):
    (tmp_path / "spectrum.png").write_bytes(b"old")
    path = save(spectrum({"encoder": random(9, 4)}), tmp_path / "spectrum.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_pyplot_and_its_global_state_are_not_used():
    modules = list(Path(visualization.__file__).parent.glob("*.py"))
    assert len(modules) > 5
    assert [path.name for path in modules if "pyplot" in path.read_text()] == []


@pytest.mark.parametrize(("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_counted(count, text):
    assert counted(count, "image") == text


def test_plain_keeps_both_ends_of_a_long_name():
    assert plain("beginning of it and the end", 11) == "begin…e end"
    assert plain("short") == "short"
