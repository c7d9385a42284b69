"""Whether a folder holds the run that a command means: same configuration, same images, unless a change is allowed."""

import logging
from collections.abc import Collection
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError

from cjepa.build import CONFIG, read_config
from cjepa.config import RunConfig, differences, unknown_key, walk
from cjepa.data import DataConfig, FolderConfig, Splits, lies_among_images, recognised
from cjepa.errors import InputError
from cjepa.models.kernels import chosen_precision
from cjepa.types import Precision

_log = logging.getLogger(__name__)

DATA = "data.json"
PLACES = ("data.source.path:", "data.source.test:", "data.source.root:", "data.source.index:")
FREE_KEYS = (
    *PLACES,
    *("data.workers:", "data.worker_timeout:", "data.cache:", "data.cache_bytes:"),
    *("training.device:", "training.threads:"),
    *("training.parallel:", "training.micro_batch:", "training.checkpoint_activations:", "training.compile:"),
    *("training.on_failed_write:", "training.hang_after:", "training.recheck_every:", "logging."),
    "monitor.evaluations:",
)
"""Keys that may change when a run continues: they name the machine or what is written down, not what is learned."""
MOST_DATA_BYTES = 16 << 20
"""What of a data.json is read at most: the names of a million classes."""
IMAGES = "images"
"""What --allow-change calls the training images, which are no key."""


class About(BaseModel):
    """What data.json says of a run; all of it is missing where there is no such file."""

    fingerprint: str | None = None
    images: int | None = None
    steps: int | None = None


def read_data(run: Path) -> About:
    """The data.json of a run folder; InputError when it is not what this package writes."""
    try:
        with (run / DATA).open("rb") as file:
            return About.model_validate_json(file.read(MOST_DATA_BYTES))
    except FileNotFoundError:
        return About()
    except (OSError, ValidationError) as error:
        raise InputError(f"{run / DATA} cannot be read; put it back, or start a new run in another folder") from error


def precision_of(config: RunConfig, folder: Path, device: torch.device) -> Precision:
    """That of the run in the folder, or of a new one on this device, where the config leaves it open."""
    if config.training.precision == "auto" and (folder / CONFIG).exists():
        config = read_config(folder)
    return chosen_precision(config.training.precision, device)


def refuse_unknown_keys(allowed: Collection[str]) -> None:
    """InputError for what --allow-change names that is no key, no group of keys and not IMAGES."""
    known = {IMAGES, *(key.path for key in walk(RunConfig))}
    unknown = [unknown_key(RunConfig, name, also=[IMAGES]) for name in allowed if name not in known]
    if unknown:
        raise InputError("\n".join(f"--allow-change: {each}" for each in unknown))


def refuse_another_config(config: RunConfig, folder: Path, allowed: Collection[str]) -> None:
    """InputError with every key that differs from the run in the folder, is not free and not allowed to."""
    if not (folder / CONFIG).exists():
        return
    changed = [line for line in differences(read_config(folder), config) if not line.startswith(FREE_KEYS)]
    refused = [line for line in changed if not _is_allowed(line.partition(":")[0], allowed)]
    if refused:
        raise InputError(
            f"{folder} holds a run of another configuration:\n  "
            + "\n  ".join(refused)
            + "\nContinue it with its own settings, choose another folder with --out, or allow a change that you mean "
            "with --allow-change KEY"
        )
    for line in changed:
        _log.warning("changed on request: %s", line)


def _is_allowed(key: str, allowed: Collection[str]) -> bool:
    """A key is allowed by its name or by that of a group it is in."""
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def refuse_new_run_among_images(data: DataConfig, folder: Path) -> None:
    """InputError where the pictures of a new run would become its images; one that is there continues anywhere."""
    if not (folder / CONFIG).exists():
        refuse_pictures_among_images(data, folder, "the run folder")


def refuse_pictures_among_images(data: DataConfig, folder: Path, what: str) -> None:
    """InputError where pictures that are written into `folder` would be images of the run from then on."""
    source = recognised(data.source)
    if isinstance(source, FolderConfig) and source.path.expanduser().is_dir() and lies_among_images(source, folder):
        raise InputError(
            f"{what} {folder} lies among the images of {source.path}: pictures that are drawn there would count as "
            "images of the run; choose a folder elsewhere with --out"
        )


def refuse_other_images(splits: Splits, folder: Path, allowed: Collection[str]) -> None:
    """InputError when the images are not those that the run in the folder began with."""
    before = read_data(folder).fingerprint
    if before in (None, splits.train.fingerprint):
        return
    if IMAGES in allowed:
        _log.warning("changed on request: the training images are not those that the run began with")
        return
    raise InputError(
        f"{folder}: the training images are not those that the run began with ({folder / DATA} has their fingerprint); "
        f"bring them back, choose another folder with --out, or allow it with --allow-change {IMAGES}"
    )
