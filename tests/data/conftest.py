from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder of 24 images of one colour each, 4 in each of 6 classes, with sizes that differ."""
    rng = np.random.default_rng(0)
    for index in range(24):
        folder = tmp_path / "colours" / f"class-{index % 6}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (20 + index, 30, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index:02d}.png")
    return tmp_path / "colours"
