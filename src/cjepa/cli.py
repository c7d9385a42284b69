"""The command line: thin, every command parses its arguments, calls cjepa.runs and prints what that returns.

Exit codes are those of cjepa.errors: 0 done, 2 bad input or configuration, 3 diverged, 4 checkpoints exist but none is
valid, 75 stopped early and resumable. torch is imported inside the commands, so that `cjepa --help` answers at once.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from cjepa import __version__
from cjepa.errors import CjepaError, InputError, NoValidCheckpointError, StoppedEarly

if TYPE_CHECKING:
    from cjepa.runs import Evaluation


class _Commands(TyperGroup):
    """Declared errors end in one readable message and their exit code; unexpected ones keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _messages_on_terminal():
                return super().invoke(ctx)
        except StoppedEarly as stopped:
            typer.echo(str(stopped), err=True)
            raise typer.Exit(stopped.exit_code) from stopped
        except CjepaError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as stopped:
            typer.echo("interrupted; the same command continues where it can", err=True)
            raise typer.Exit(StoppedEarly.exit_code) from stopped


class _PretrainCommand(TyperCommand):
    """Its help documents every config key, for which torch has to be imported: only when it is asked for."""

    def get_help(self, ctx: Any) -> str:
        from cjepa.cli_text import config_help

        return f"{super().get_help(ctx)}\n\n{config_help()}"


class _EvaluateCommand(TyperCommand):
    """Its help documents the keys of every evaluation."""

    def get_help(self, ctx: Any) -> str:
        from cjepa.cli_text import evaluation_help

        return f"{super().get_help(ctx)}\n\n{evaluation_help()}"


app = typer.Typer(
    name="cjepa",
    cls=_Commands,
    help="C-JEPA (Contrastive-JEPA: I-JEPA + VICReg, not Causal-JEPA): from a folder of images to an encoder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Presets and configuration keys.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")

Origin = Annotated[
    str, typer.Argument(metavar="PRESET|FILE.yaml", help="A preset (see cjepa config list) or a YAML file.")
]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to single keys.", show_default=False)
]
RunToCheck = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run folder to check.", show_default=False)]


def main() -> None:
    """The entry point of `cjepa` and of `python -m cjepa`."""
    app()


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"cjepa {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(cls=_PretrainCommand, short_help="Pre-train an encoder on a folder of images.")
def pretrain(
    origin: Origin,
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; a run that it holds is continued.", show_default="runs/PRESET")
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="A key, a group of keys or `images` that may differ from what the run began with; may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Pre-train an encoder on a folder of images: cjepa pretrain small-96 data=DIR --out RUN.

    RUN is continued when it holds a checkpoint; with another configuration it is refused, with the difference, unless
    --allow-change names it. Ctrl-C or a scheduler's signal saves first and exits with 75; the same command continues.
    """
    from cjepa.cli_text import outcome_table, outcome_text
    from cjepa.config.presets import resolve
    from cjepa.runs import PICTURES, draw_pictures
    from cjepa.runs import pretrain as run

    folder = out or Path("runs") / Path(origin).stem
    outcome = run(resolve(origin, changes or []), folder, allow_change or [])
    _print(outcome_table(outcome))
    typer.echo(outcome_text(outcome))
    draw_pictures({"trained": folder}, folder / PICTURES)
    typer.echo(f"pictures: {folder / PICTURES}")


@app.command(cls=_EvaluateCommand, short_help="Evaluate the frozen encoder of a run.")
def evaluate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The evaluation: knn or linear.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    changes: Changes = None,
    encoder: Annotated[str, typer.Option(help="Which encoder: target or context.")] = "target",
    checkpoint: Annotated[str, typer.Option(help="Which checkpoint: last or best.")] = "last",
    images: Annotated[
        Path | None, typer.Option(help="Labelled images to use in place of the run's.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Evaluate the frozen encoder of RUN beside what it has to beat: cjepa evaluate knn RUN k=[20].

    That is raw pixels, colour statistics and the untrained encoder. Every result is a line of RUN/evaluations.jsonl,
    and none is computed twice.
    """
    from cjepa.build import When, Which
    from cjepa.cli_text import results_table, results_text
    from cjepa.runs import evaluate_run

    results = evaluate_run(
        run,
        [_evaluation(name, changes or [])],
        which=_one_of("--encoder", encoder, get_args(Which)),
        checkpoint=_one_of("--checkpoint", checkpoint, get_args(When)),
        images=images,
        device=device,
    )
    _print(results_table(results))
    typer.echo(results_text(results, run))


@app.command(short_help="Train on images that are already here, in minutes.")
def demo(
    changes: Changes = None,
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("runs/demo"),
) -> None:
    """C-JEPA and plain I-JEPA side by side on images that come with scikit-image: minutes on 2 CPU cores.

    Pre-trains both, evaluates them, draws pictures and says what the difference is. When interrupted, the same command
    continues.
    """
    from cjepa.cli_text import demo_table, demo_text
    from cjepa.runs import run_demo

    shown = run_demo(out, changes or [])
    _print(demo_table(shown))
    typer.echo(demo_text(shown))


@app.command(short_help="Pack images into tar shards, or index shards.")
def shard(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder of images, or what else data= takes.")],
    out: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Where to write.", show_default=False)] = None,
    changes: Changes = None,
    size: Annotated[
        int | None, typer.Option(min=16, help="Reduce the shorter side to this many pixels.", show_default=False)
    ] = None,
    image_format: Annotated[
        str, typer.Option("--format", help="Of reduced images: jpeg (quality 95) or png (lossless, larger).")
    ] = "jpeg",
    images_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Images in a shard.", show_default="about 256 MB of them")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Images that are reduced at a time.")] = 1,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="IMAGES holds tar shards: write an index into OUT, or beside them.")
    ] = False,
) -> None:
    """Pack images into tar shards (WebDataset layout) that pretrain reads by offset: cjepa shard DIR OUT --size 256.

    Then: cjepa pretrain PRESET data=OUT. Order, number and names stay those of the images; a folder with train and
    test is packed as OUT/train and OUT/test. Another source: cjepa shard FOLDER OUT data.source.name=parquet. When
    interrupted, the same command goes on behind the last whole shard. Shards made by others: cjepa shard --index-only
    SHARDS [OUT].
    """
    from cjepa.cli_text import sharded_text
    from cjepa.runs import index_shards, shard_images
    from cjepa.runs.shard_writing import Format, Packing
    from cjepa.runs.sharding import data_of

    if index_only:
        shards, index = Path(images), out or Path(images)
        beside = f"data={shards}"
        apart = f"data.source.name=shards data.source.path={shards} data.source.index={index}"
        typer.echo(sharded_text(index_shards(shards, index), beside if index == shards else apart))
        return
    if out is None:
        raise InputError("name the folder to write the shards into: cjepa shard IMAGES OUT")
    packing = Packing(size, _one_of("--format", image_format, get_args(Format)), images_per_shard)
    typer.echo(sharded_text(shard_images(data_of(images, changes or []), out, packing, workers), f"data={out}"))


@app.command(short_help="Check this machine, or the checkpoints of a run.")
def doctor(run: RunToCheck = None) -> None:
    """What this machine offers; with RUN, whether its checkpoints are intact and which is used next."""
    from cjepa.cli_text import diagnosis_text, environment_text
    from cjepa.runs import diagnose, environment

    typer.echo(environment_text(environment()))
    if run is None:
        return
    diagnosis = diagnose(run)
    typer.echo(diagnosis_text(diagnosis, run))
    if diagnosis.checkpoints and diagnosis.used is None:
        raise NoValidCheckpointError(
            f"none of the checkpoints of {run} is valid; put back a copy of one, or start a new run in another folder"
        )


@app.command(short_help="Take again the steps that made a run give up.")
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """The steps that ended a run with exit code 3, taken again from the weights and images it had; changes nothing."""
    from cjepa.cli_text import replayed_text
    from cjepa.runs import replay as again

    typer.echo(replayed_text(again(run, device)))


@config_app.command("list")
def list_presets() -> None:
    """The presets and what they are."""
    from cjepa.cli_text import presets_text

    typer.echo(presets_text())


@config_app.command()
def show(origin: Origin, changes: Changes = None) -> None:
    """The complete configuration of a preset or file after the changes, as YAML that pretrain reads."""
    from cjepa.config import dump_yaml
    from cjepa.config.presets import resolve

    typer.echo(dump_yaml(resolve(origin, changes or [])), nl=False)


@config_app.command()
def schema() -> None:
    """The JSON schema of the configuration, for editors."""
    import json

    from cjepa.config import RunConfig, json_schema

    typer.echo(json.dumps(json_schema(RunConfig), indent=2))


def _evaluation(name: str, changes: Sequence[str]) -> "Evaluation":
    from cjepa.config import apply_overrides, nearest_first, parse, parts_of, variant_name
    from cjepa.evaluation import EvaluationConfig

    parts = {variant_name(part) or "": part for part in parts_of(EvaluationConfig)}
    if name not in parts:
        raise InputError(f"there is no evaluation {name}; it is one of {', '.join(nearest_first(name, parts))}")
    return cast("Evaluation", parse(parts[name], apply_overrides(parts[name], {}, changes)))


def _one_of(option: str, given: str, choices: tuple[Any, ...]) -> Any:
    if given not in choices:
        raise InputError(f"{option} {given}: it is one of {', '.join(choices)}")
    return given


def _print(table: object) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, 80)
    console.print(table)


class _Terminal(logging.Handler):
    """Messages on standard error, looked up for each one: the live line redirects it while it is open."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{warning}{record.getMessage()}", file=sys.stderr, flush=True)

    def filter(self, record: logging.LogRecord) -> bool:
        """The choice of a regularisation and the like belong into a log, not before a user."""
        return record.levelno > logging.INFO or not record.name.startswith("cjepa.evaluation")


@contextmanager
def _messages_on_terminal() -> Iterator[None]:
    handler, package = _Terminal(), logging.getLogger("cjepa")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
