"""Images and the run of a single process, which all others are compared with."""

from pathlib import Path

import pytest

from tests.distributed.runs import run
from tests.tiny_runs import write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("ranks") / "images")


@pytest.fixture(scope="session")
def single(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of twelve steps taken by one process."""
    folder = tmp_path_factory.mktemp("ranks") / "single"
    assert run(images, folder, {}).code == 0
    return folder
