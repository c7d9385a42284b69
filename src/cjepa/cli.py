"""The command line: thin, every command parses its arguments, calls cjepa.runs and prints what that returns.

Exit codes are those of cjepa.errors: 0 done, 2 bad input or configuration or too little memory for it, 3 diverged, 4
checkpoints exist but none is valid, 75 stopped early and resumable. torch is imported inside the commands, so that
`cjepa --help` answers at once.
"""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from cjepa import __version__
from cjepa.cli_arguments import Changes, Heads, Origin, Weights, at_home, one_of, variant
from cjepa.cli_files import embed, export, shard
from cjepa.cli_terminal import drop_output, messages_on_terminal, print_table, spell_out_what_it_lacks
from cjepa.errors import CjepaError, NoValidCheckpointError, StoppedEarly, StorageError, enough_memory

if TYPE_CHECKING:
    from cjepa.evaluation import Evaluation


_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What standard output says on a full disk; files of the package have errors of their own."""
_FREE_MEMORY = "end what else uses it, or take another --device where the command has one"
"""Where nothing closer to the fault could say what to lower."""


class _Commands(TyperGroup):
    """Declared errors end in one readable message and their exit code; unexpected ones keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with messages_on_terminal(), enough_memory(_FREE_MEMORY):
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except StoppedEarly as stopped:
            typer.echo(str(stopped), err=True)
            raise typer.Exit(stopped.exit_code) from stopped
        except CjepaError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as stopped:
            typer.echo("interrupted; the same command continues where it can", err=True)
            raise typer.Exit(StoppedEarly.exit_code) from stopped
        except OSError as error:
            if error.errno not in _FULL:
                raise
            drop_output()
            typer.echo(f"error: the output could not be written: {error.strerror}; nothing else is lost", err=True)
            raise typer.Exit(StorageError.exit_code) from error


class _PretrainCommand(TyperCommand):
    """Its help documents every config key, for which torch has to be imported: only when it is asked for."""

    def get_help(self, ctx: Any) -> str:
        from cjepa.cli_text import config_help

        return f"{super().get_help(ctx)}\n\n{config_help()}"


class _ExportCommand(TyperCommand):
    """Its help documents the formats and their keys."""

    def get_help(self, ctx: Any) -> str:
        from cjepa.cli_text import export_help

        return f"{super().get_help(ctx)}\n\n{export_help()}"


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

RunToCheck = Annotated[
    Path | None, typer.Argument(metavar="[RUN]", help="A run folder to check.", show_default=False, callback=at_home)
]


def main() -> None:
    """The entry point of `cjepa` and of `python -m cjepa`."""
    spell_out_what_it_lacks()
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
        Path | None,
        typer.Option(
            help="The run folder; a run that it holds is continued.", show_default="runs/PRESET", callback=at_home
        ),
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
    from cjepa.ranks import is_first
    from cjepa.runs import PICTURES, draw_pictures, write_report
    from cjepa.runs import pretrain as run
    from cjepa.training.device_memory import keep_freed_memory

    keep_freed_memory()
    folder = out or Path("runs") / Path(origin).stem
    config = resolve(origin, changes or [])
    outcome = run(config, folder, allow_change or [])
    if not is_first():
        return
    print_table(outcome_table(outcome))
    typer.echo(outcome_text(outcome))
    typer.echo("drawing", err=True)
    draw_pictures({"trained": folder}, folder / PICTURES)
    typer.echo(f"pictures: {folder / PICTURES}")
    if config.logging.report:
        typer.echo(f"report: {write_report({folder.resolve().name: folder})}")


@app.command(short_help="What a run needs and how long it takes, before it starts.")
def plan(
    origin: Origin,
    changes: Changes = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, or one that is not here: cuda:A100, cuda:H100 ...")
    ] = "auto",
    world_size: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of an epoch, for its time.", show_default="counted where they are here"),
    ] = None,
) -> None:
    """Parameters, operations, memory, micro-batch and time of a run: cjepa plan imagenet-vit-b --device cuda:A100.

    On a device of this machine a few steps are timed; for one that is not here everything is computed.
    """
    from cjepa.cli_text import plan_text
    from cjepa.config.presets import resolve
    from cjepa.runs import images_here
    from cjepa.runs import plan as make_plan

    config = resolve(origin, changes or [])
    typer.echo(plan_text(make_plan(config, device, world_size, images or images_here(config))))


@app.command(cls=_EvaluateCommand, short_help="Evaluate the encoder of a run.")
def evaluate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The evaluation; see below.")],
    run: Weights,
    changes: Changes = None,
    encoder: Annotated[str, typer.Option(help="Which encoder: target or context.")] = "target",
    checkpoint: Annotated[str, typer.Option(help="Which checkpoint: last or best.")] = "last",
    images: Annotated[
        Path | None,
        typer.Option(help="Labelled images to use in place of the run's.", show_default=False, callback=at_home),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per forward pass, frozen.", show_default="monitor.batch_size of the run"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=256, help="Processes that decode images.", show_default="data.workers of the run"),
    ] = None,
    heads: Heads = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, or mps, which is untested.")] = "auto",
) -> None:
    """Evaluate the encoder of RUN beside what it has to beat: cjepa evaluate knn RUN 'k=[20]'.

    That is the untrained encoder and, for evaluations of pooled features, raw pixels and colour statistics. Every
    result is a line of RUN/evaluations.jsonl, and none is computed twice. Interrupted, the same command continues.
    """
    from cjepa.build import When, Which
    from cjepa.cli_text import results_table, results_text
    from cjepa.ranks import is_first
    from cjepa.runs import evaluate_run

    results = evaluate_run(
        run,
        [_evaluation(name, changes or [])],
        which=one_of("--encoder", encoder, get_args(Which)),
        checkpoint=one_of("--checkpoint", checkpoint, get_args(When)),
        images=images,
        device=device,
        heads=heads,
        batch_size=batch_size,
        workers=workers,
    )
    if not is_first():
        return
    print_table(results_table(results))
    typer.echo(results_text(results, run))


app.command(cls=_ExportCommand, short_help="Write an encoder in the format of another library.")(export)
app.command(short_help="Embed all images of a folder, list or shards.")(embed)
app.command(short_help="Pack images into tar shards, or index shards.")(shard)


@app.command(short_help="Train on images that are already here, in minutes.")
def demo(
    changes: Changes = None,
    out: Annotated[Path, typer.Option(help="Where to write.", callback=at_home)] = Path("runs/demo"),
) -> None:
    """C-JEPA and plain I-JEPA side by side on images that come with scikit-image: minutes on 2 CPU cores.

    Pre-trains both, evaluates them, draws pictures and says what the difference is. When interrupted, the same command
    continues.
    """
    from cjepa.cli_text import demo_table, demo_text
    from cjepa.runs import run_demo
    from cjepa.training.device_memory import keep_freed_memory

    keep_freed_memory()
    shown = run_demo(out, changes or [])
    print_table(demo_table(shown))
    typer.echo(demo_text(shown))


@app.command(short_help="Write one HTML page about one or several runs.")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders; several are compared.", callback=at_home)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write.",
            show_default="RUN/report/index.html; of several, comparison.html there in the first RUN",
            callback=at_home,
        ),
    ] = None,
) -> None:
    """One HTML page that holds everything: verdict, curves, what the encoders see, masks, data, comparison.

    It needs no network and opens from the disk. Runs that differ by their seed alone become one curve with a band.
    A run that is missing pieces has a page of what there is.
    """
    from cjepa.runs import name_runs, write_report

    typer.echo(f"report: {write_report(name_runs(runs), out)}")


@app.command(short_help="Draw single pictures of what a run's encoders see.")
def visualize(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="attention, pca, masks or neighbours.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", callback=at_home)],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="An image or a folder; the first 8 are shown.", callback=at_home)
    ],
    out: Annotated[Path, typer.Option(help="The folder to write into.", callback=at_home)] = Path(),
    checkpoint: Annotated[str, typer.Option(help="Which checkpoint: last or best.")] = "last",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, or mps, which is untested.")] = "auto",
) -> None:
    """A PNG and an SVG of what the encoders of RUN make of IMAGES: cjepa visualize attention RUN IMAGES --out DIR.

    attention: what each patch receives in the last block. pca: patch features as colours. masks: context and targets.
    neighbours: the most similar training images.
    """
    from cjepa.build import When
    from cjepa.runs import Picture
    from cjepa.runs import visualize as draw

    chosen = one_of("PICTURE", picture, get_args(Picture))
    when = one_of("--checkpoint", checkpoint, get_args(When))
    for path in draw(chosen, run, images, out, checkpoint=when, device=device):
        typer.echo(str(path))


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
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", callback=at_home)],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, or mps, which is untested.")] = "auto",
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
    from cjepa.evaluation import EvaluationConfig

    return cast("Evaluation", variant("evaluation", EvaluationConfig, name, changes))
