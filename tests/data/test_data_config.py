import os

import pytest
import torch
from pydantic import ValidationError

from cjepa.data import DataConfig, DemoConfig, FolderConfig


def test_a_source_is_chosen_by_name() -> None:
    config = DataConfig.model_validate({"source": {"name": "folder", "path": "photos"}, "image_size": [32, 64]})
    assert config.source == FolderConfig(path="photos")
    assert config.size == (32, 64)
    assert DataConfig(source=DemoConfig(), image_size=32).size == (32, 32)
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", 0),
        ("image_size", (32, -1)),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.3, 1.1)),
        ("crop_scale", (0.9, 0.3)),
        ("crop_ratio", (2.0, 1.0)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (1.0, float("inf"))),
        ("crop_scale", (float("nan"), 1.0)),
        ("evaluation_crop", 0.0),
        ("std", (0.2, 0.0, 0.2)),
        ("workers", -1),
        ("max_pixels", 10**9),
        ("max_unreadable_share", 1.5),
        ("crop_scales", (0.3, 1.0)),
    ],
)
def test_nonsense_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        DataConfig.model_validate({"source": {"name": "demo"}, key: value})


def test_a_source_is_required() -> None:
    """Whoever forgets data=DIR should hear of it, not train on the demo."""
    with pytest.raises(ValidationError, match="source"):
        DataConfig.model_validate({})


def test_every_key_is_documented() -> None:
    for part in (DataConfig, FolderConfig, DemoConfig):
        for key, field in part.model_fields.items():
            assert field.description, (part, key)


def test_beside_a_gpu_there_is_a_worker_for_each_core_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert DataConfig(source=DemoConfig()).processes == 2, "one is left to the main process"
