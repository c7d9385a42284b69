"""The numbers of a run: metrics.jsonl always, TensorBoard and Weights & Biases on request."""

import logging
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from cjepa.errors import InputError
from cjepa.training.durable import replace
from cjepa.training.rows import RowLog, read_rows
from cjepa.types import Part

_log = logging.getLogger(__name__)

_WANDB_ID = "wandb-id.txt"


class LoggingConfig(Part):
    """Where the metrics go besides metrics.jsonl."""

    tensorboard: bool = False
    """Write TensorBoard event files into the folder `tensorboard` of the run."""
    wandb: str | None = None
    """Name of the Weights & Biases project to log to; none when left out."""
    report: bool = True
    """Keep what the report shows, and rewrite report/index.html at evaluations for a browser left open."""
    report_share: float = Field(0.02, ge=0, le=1)
    """Most of the run's time that rewriting the report may take; 0: only when the run ends."""


@runtime_checkable  # for the shape checks of the tests
class MetricsWriter(Protocol):
    """Anything that takes named numbers of a step."""

    def write(self, step: int, split: str, values: Mapping[str, int | float]) -> None:
        """Record the values of one step; `split` says what they were measured on, such as train or test."""
        ...

    def flush(self) -> None:
        """Bring what was written to its place; called before each checkpoint."""
        ...

    def close(self) -> None:
        """Flush and end; nothing is written afterwards."""
        ...


class MetricsLog:
    """metrics.jsonl: one object a line with `step`, `split` and the values.

    NaN and infinities, which JSON does not have, are written as null: every JSON reader and pandas then sees a
    missing number and no column changes its type; `read_metrics` gives them back as NaN.
    """

    def __init__(self, path: Path) -> None:
        self._rows = RowLog(path)

    def write(self, step: int, split: str, values: Mapping[str, int | float]) -> None:
        """Append one row."""
        assert not {"step", "split"} & values.keys(), values
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._rows.append({"step": step, "split": split, **finite})

    def flush(self) -> None:
        """Bring the rows to the disk."""
        self._rows.sync()

    def close(self) -> None:
        """Bring the rows to the disk; the file is not kept open."""
        self.flush()

    def truncate_after(self, step: int, evaluated: int | None = None) -> None:
        """Remove the rows after `step` and a cut last line: those steps are about to be taken again.

        evaluated: the step of the last evaluation that counts, by default `step`; later ones are made again too.
        """
        last = {"evaluation": step if evaluated is None else evaluated}
        self._rows.keep(lambda row: row["step"] <= last.get(str(row.get("split")), step))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in order; a cut last line and lines of others are left out, null becomes NaN.

    Of rows of the same step and split, as a run that was killed between two saves may have had, the last one counts.
    """
    rows = {(row["step"], row["split"]): row for row in read_rows(path) if isinstance(row.get("split"), str)}
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows.values()]


def open_writers(
    config: LoggingConfig, folder: Path, step: int, settings: Mapping[str, Any], evaluated: int | None = None
) -> list[MetricsWriter]:
    """The writers of the run in `folder`, which continues after `step` (-1 or 0: from the start).

    settings: the resolved config, shown beside the run in Weights & Biases. evaluated: the last step whose evaluation
    counts, by default `step`. InputError names the extra to install.
    """
    writers: list[MetricsWriter] = []
    if config.tensorboard:
        writers.append(_TensorBoard(folder / "tensorboard", step))
    if config.wandb is not None:
        writers.append(_Wandb(config.wandb, folder, settings))
    log = MetricsLog(folder / "metrics.jsonl")
    log.truncate_after(step, evaluated)
    return [log, *writers]


class _TensorBoard:
    """Event files; on resume the steps after the checkpoint are hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", "logging.tensorboard=false") from error
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=step + 1)

    def write(self, step: int, split: str, values: Mapping[str, int | float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One Weights & Biases run for each run folder, continued on resume.

    Its own step counter only goes up and would drop the steps that a resumed run repeats, so the step is logged as
    a value and set as the axis.
    """

    def __init__(self, project: str, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", "logging.wandb=null") from error
        self._run = wandb.init(
            project=project,
            name=folder.resolve().name,
            id=_run_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, values: Mapping[str, int | float]) -> None:
        self._run.log({"step": step, **{f"{split}/{name}": value for name, value in values.items()}})

    def flush(self) -> None:
        """Nothing to do: it sends from a process of its own."""

    def close(self) -> None:
        self._run.finish()


def _run_id(folder: Path) -> str:
    """The id under which this run folder is known there, drawn once; a copy beside its original draws its own.

    The file holds the id and, from its second line on, the folder that it belongs to: one that was moved, or brought to
    another machine, keeps its id.
    """
    path, here = folder / _WANDB_ID, os.fsencode(folder.resolve())
    known, _, place = path.read_bytes().partition(b"\n") if path.exists() else (b"", b"", b"")
    if place and _is_copy(folder, origin := Path(os.fsdecode(place)), known):
        _log.warning("%s is a copy of %s, whose Weights & Biases run stays its own: a new one begins", folder, origin)
        known = b""
    if not known or place != here:
        known = known or secrets.token_hex(8).encode()
        replace(path, known + b"\n" + here)
    return known.decode()


def _is_copy(folder: Path, origin: Path, known: bytes) -> bool:
    """Whether the folder that an id belongs to is another one, and still has it."""
    try:
        theirs, _, _ = (origin / _WANDB_ID).read_bytes().partition(b"\n")
        return theirs == known and not origin.samefile(folder)
    except OSError:
        return False


def _missing(extra: str, setting: str) -> InputError:
    return InputError(f'{extra} is not installed; run: pip install "cjepa[{extra}]", or set {setting}')
