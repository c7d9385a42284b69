"""Does the paper hold at small scale? The plan of benchmarks/study_plan.py, run as far as the time allows.

    python -m benchmarks.study --budget 2h --device cpu [--data cifar10=DIR clothing=DIR]

adds runs to benchmarks/results/study/, one file each, until the plan for that device is complete or the time is over;
the same command continues, also a run that was interrupted in its middle. A run that diverges is a result and is kept
as one; one that fails for another reason is recorded and does not stop the others (--retry tries those again).
`--list` says what is missing. `--report` writes tables and figures into docs/results.md from the files alone.
"""

import argparse
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.study_plan import PLAIN, Run, planned
from benchmarks.study_results import RESULTS, Result, save
from cjepa.build import build_encoder, find_checkpoint
from cjepa.config import RunConfig
from cjepa.config.presets import resolve
from cjepa.data import EvaluationImages, ImageSource, Splits, labelled_only, open_source
from cjepa.errors import CjepaError, DivergedError, InputError, StoppedEarly, StorageError, WorkerError
from cjepa.evaluation import evaluate
from cjepa.evaluation.baselines import colour_statistics, raw_pixels
from cjepa.evaluation.features import LabelledFeatures, extract_features
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.evaluation.monitor import NEIGHBOURS, labelled_splits, some_images
from cjepa.evaluation.representation import singular_values
from cjepa.models.kernels import chosen_precision
from cjepa.runs.pretraining import pretrain
from cjepa.training.environment import describe_environment
from cjepa.training.interruption import stopping_at_once
from cjepa.training.metrics import read_metrics
from cjepa.training.run_folder import RunFolder

CURVE = (
    f"knn_{NEIGHBOURS}",
    f"knn_{NEIGHBOURS}_centred",
    "linear",
    "effective_rank",
    "std_smallest",
    "std_mean",
    "spread",
    "explained_variance",
)
"""What is kept of every evaluation of the target encoder."""
_UNITS = {"s": 1, "m": 60, "h": 3600}
_LEFT_OUT = ("step", "split", "epoch", "learning_rate", "weight_decay", "momentum")


def config_of(run: Run, sources: Mapping[str, Path], device: str) -> RunConfig:
    """The config of a run; InputError where its images were not named."""
    images = [f"data={sources[_images(run)]}"] if run.part.recipe.folder else []
    return resolve(run.part.recipe.preset, [*images, *run.changes, f"training.device={device}"])


def carry_out(config: RunConfig, folder: Path) -> Result:
    """Train, or continue, and tell what came of it. StoppedEarly, StorageError and WorkerError come through."""
    continued, started = folder.exists(), time.monotonic()
    found: Result = {"outcome": "finished", "verdict": None}
    try:
        found["verdict"] = pretrain(config, folder).verdict.state
    except DivergedError as error:
        found |= {"outcome": "diverged", "error": _message(error, folder)}
    except (StoppedEarly, StorageError, WorkerError):
        raise
    except (CjepaError, RuntimeError, MemoryError, ValueError) as error:
        return found | {"outcome": "failed", "error": _message(error, folder)}
    found["seconds"] = None if continued else round(time.monotonic() - started, 1)
    rows = read_metrics(folder / "metrics.jsonl")
    found["curve"] = [_values(row, config) for row in rows if row["split"] == "evaluation"]
    found["losses"] = [_losses(row, config) for row in _thinned(rows, len(found["curve"]))]
    found["spectrum"] = _spectrum(config, folder)
    return found


def described(run: Run, found: Result) -> Result:
    """What the file of a run holds: how to repeat it, what it ran on, what came of it."""
    environment = describe_environment()
    del environment["command"]  # names folders of one machine
    return {
        "part": run.part.name,
        "group": run.condition.group,
        "condition": run.condition.name,
        "seed": run.seed,
        "preset": run.part.recipe.preset,
        "changes": run.changes,
        "device": run.part.device,
        **found,
        "environment": environment,
    }


def baselines(config: RunConfig) -> dict[str, dict[str, float]]:
    """Accuracies of features that nobody had to learn, of the images that the run is measured on."""
    labelled = labelled_splits(open_source(config.data, config.seed))
    assert labelled is not None, "the study's images have labels"
    assert labelled.test is not None, "and some to test on"
    train = some_images(labelled_only(labelled.train), config.monitor.train_images)
    test = some_images(labelled.test, config.monitor.test_images)
    pixels = [_decoded(source, config) for source in (train, test)]
    found = {}
    for name, features_of in (("raw pixels", raw_pixels), ("colour statistics", colour_statistics)):
        own = [features_of(each) for each in pixels]
        features = LabelledFeatures.select(own[0], train.labels, own[1], test.labels, train.classes)
        values = [evaluate(evaluation, features) for evaluation in (KnnConfig(k=(NEIGHBOURS,)), LinearConfig())]
        found[name] = {key: round(value, 2) for each in values for key, value in each.items()}
    return found


def _decoded(source: ImageSource, config: RunConfig) -> torch.Tensor:
    images = EvaluationImages(source, config.data)
    return torch.stack([images[index] for index in range(len(images))])


def _images(run: Run) -> str:
    """The name of the data set of a run, for --data."""
    return run.part.recipe.name.split("-")[0]


def _values(row: Mapping[str, Any], config: RunConfig) -> Result:
    kept = {name: _rounded(row[name]) for name in CURVE if name in row}
    return {"images": int(row["step"]) * config.training.batch_size, **kept}


def _losses(row: Mapping[str, Any], config: RunConfig) -> Result:
    kept = {name: _rounded(value) for name, value in row.items() if name not in _LEFT_OUT}
    return {"images": int(row["step"]) * config.training.batch_size, **kept}


def _thinned(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """So many of the rows of training, evenly, the last one included."""
    trained = [row for row in rows if row["split"] == "train"]
    picked = sorted({round((index + 1) * len(trained) / max(count, 1)) - 1 for index in range(count)})
    return [trained[index] for index in picked if 0 <= index < len(trained)]


def _rounded(value: float) -> float | None:
    """Four significant digits; JSON has no NaN."""
    return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else None


def _spectrum(config: RunConfig, folder: Path) -> list[float | None]:
    """Standard deviations of the embeddings of the test images along their principal axes, at the last checkpoint."""
    splits: Splits = open_source(config.data, config.seed)
    images = some_images(splits.test or splits.train, config.monitor.test_images)
    encoder = build_encoder(config, find_checkpoint(folder, "last"))
    device = torch.device(config.training.device)
    features = extract_features(
        encoder.to(device),
        EvaluationImages(images, config.data),
        config.data.mean,
        config.data.std,
        device=device,
        precision=chosen_precision(config.training.precision, device),
    )
    return [_rounded(value) for value in singular_values(features).tolist()]


def _message(error: Exception, folder: Path) -> str:
    """The first line of an error; the folder of this machine is called scratch."""
    first = next(iter(str(error).splitlines()), "").replace(str(folder), "scratch")
    return f"{type(error).__name__}: {first}"


def study(left: Sequence[Run], sources: Mapping[str, Path], scratch: Path, until: float, results: Path) -> int:
    """Runs that have no result yet, in order, until the time is over; the exit code.

    75 with runs left, 1 if one could not be recorded.
    """
    code = 0
    for number, run in enumerate(left, 1):
        if time.monotonic() >= until:
            print(f"the time is over; {len(left) - number + 1} runs are left, and the same command continues")
            return 75
        print(f"{number} of {len(left)}: {run.key}", flush=True)
        alarm = threading.Timer(until - time.monotonic(), lambda: os.kill(os.getpid(), signal.SIGTERM))
        alarm.daemon = True
        try:
            # A training minds the signal itself; what is measured after it must not be killed by it.
            with stopping_at_once("the same command continues the study"):
                alarm.start()
                config = config_of(run, sources, run.part.device)
                found = carry_out(config, scratch / run.key)
                if run.condition.name == PLAIN and found["outcome"] == "finished":
                    found["baselines"] = baselines(config)
                alarm.cancel()
        except InputError as error:
            found = {"outcome": "failed", "error": _message(error, scratch)}
        except StoppedEarly as stop:
            print(stop)
            return 75
        except (StorageError, WorkerError) as error:
            print(f"not recorded, to be continued: {error}", flush=True)
            code = 1
            continue
        finally:
            alarm.cancel()
        save(run.key, described(run, found), results)
        print(f"   {found['outcome']}, {found.get('seconds')} s: {(found.get('curve') or [{}])[-1]}", flush=True)
    return code


def _missing(run: Run, retry: bool) -> bool:
    path = RESULTS / f"{run.key}.json"
    return not path.exists() or (retry and json.loads(path.read_text())["outcome"] == "failed")


def seconds_of(text: str) -> float:
    """90s, 20m, 2h, 1.5h; a bare number is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 20m or 2h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _source(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=DIR, as cifar10=DIR")
    return name, Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=seconds_of, default=seconds_of("2h"), help="time to spend: 90s, 20m, 2h")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=_source, nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--only", nargs="*", help="only runs whose names, as --list has them, contain one of these")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/study"))
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--list", action="store_true", help="say what is missing")
    parser.add_argument("--report", action="store_true", help="write docs/results.md from the results")
    arguments = parser.parse_args()
    if arguments.report:
        from benchmarks.study_report import write_report

        write_report()
        return 0
    runs = [run for run in planned(arguments.device) if _missing(run, arguments.retry)]
    left = [run for run in runs if any(part in run.key for part in arguments.only or [""])]
    if arguments.list:
        print(*(run.key for run in left), sep="\n")
        return 0
    logging.getLogger("cjepa").setLevel(logging.WARNING)
    sources, until = dict(arguments.data), time.monotonic() + arguments.budget
    possible = [run for run in left if not run.part.recipe.folder or _images(run) in sources]
    if len(possible) < len(left):
        print(f"{len(left) - len(possible)} runs need the folders of other images: --data NAME=DIR")
    try:
        with RunFolder(arguments.scratch):  # two studies would take each other's runs
            return study(possible[: arguments.most], sources, arguments.scratch, until, RESULTS)
    except CjepaError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
