"""The commands that write images or encoders in other forms: export, embed, shard; cli.py names them."""

import shlex
from pathlib import Path
from typing import Annotated, get_args

import typer

from cjepa.cli_arguments import Changes, Heads, Weights, at_home, one_of, variant
from cjepa.errors import InputError


def export(
    run: Weights,
    out: Annotated[Path, typer.Option(help="The folder to write, new or empty.", callback=at_home)],
    changes: Changes = None,
    name: Annotated[
        str, typer.Option("--format", help="safetensors, transformers, timm, onnx or torch-export.")
    ] = "safetensors",
    encoder: Annotated[str, typer.Option(help="Which encoder: target or context.")] = "target",
    checkpoint: Annotated[str, typer.Option(help="Which checkpoint: last or best.")] = "last",
    licence: Annotated[
        str, typer.Option(help="Identifier of the weights' licence, for the model card.", show_default=False)
    ] = "",
    heads: Heads = None,
) -> None:
    """Write the encoder of RUN with a model card: cjepa export RUN --format timm --out DIR.

    What was written is opened again by the library it is for, and has to give the same numbers; the largest difference
    is printed. When it is off, nothing is left and the exit code is 2.
    """
    from cjepa.build import When, Which
    from cjepa.cli_text import export_text
    from cjepa.export import ExportConfig
    from cjepa.runs import export_run

    written = export_run(
        run,
        variant("format", ExportConfig, name, changes or []),
        out,
        which=one_of("--encoder", encoder, get_args(Which)),
        checkpoint=one_of("--checkpoint", checkpoint, get_args(When)),
        licence=licence,
        heads=heads,
    )
    typer.echo(export_text(written))


def embed(
    run: Weights,
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="A folder, list or shards of images.", callback=at_home)
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .npy, .parquet or .safetensors.", callback=at_home)],
    features: Annotated[str, typer.Option(help="pooled, patches or both.")] = "pooled",
    image_size: Annotated[
        str, typer.Option(help="Side, or HEIGHTxWIDTH, in pixels.", show_default="that of the training")
    ] = "",
    encoder: Annotated[str, typer.Option(help="Which encoder: target or context.")] = "target",
    checkpoint: Annotated[str, typer.Option(help="Which checkpoint: last or best.")] = "last",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16; embeddings are float32.")] = "float32",
    workers: Annotated[int, typer.Option(min=0, max=256, help="Processes that decode images, 0 for the main one.")] = 0,
    heads: Heads = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, or mps, which is untested.")] = "auto",
) -> None:
    """Embed all images with the encoder of RUN: cjepa embed RUN IMAGES --out embeddings.npy.

    Row i is image i, in the order of the names that are written too. An image that cannot be read has an empty row
    (NaN, in .parquet null) and a line in a .unreadable.jsonl. When interrupted, the same command continues.
    """
    from cjepa.build import When, Which
    from cjepa.cli_text import embedded_text
    from cjepa.embedding import Features
    from cjepa.runs import EmbeddingJob, embed_images

    job = EmbeddingJob(
        one_of("--features", features, get_args(Features)),
        _size(image_size),
        batch_size,
        one_of("--precision", precision, ("float32", "bfloat16")),
    )
    embedded = embed_images(
        run,
        images,
        out,
        job,
        which=one_of("--encoder", encoder, get_args(Which)),
        checkpoint=one_of("--checkpoint", checkpoint, get_args(When)),
        device=device,
        workers=workers,
        heads=heads,
    )
    typer.echo(embedded_text(embedded))


def shard(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder of images, or what else data= takes.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Where to write.", show_default=False, callback=at_home)
    ] = None,
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
        beside = shlex.quote(f"data={shards}")
        apart = shlex.join(["data.source.name=shards", f"data.source.path={shards}", f"data.source.index={index}"])
        typer.echo(sharded_text(index_shards(shards, index), beside if index == shards else apart))
        return
    if out is None:
        raise InputError("name the folder to write the shards into: cjepa shard IMAGES OUT")
    packing = Packing(size, one_of("--format", image_format, get_args(Format)), images_per_shard)
    typer.echo(
        sharded_text(shard_images(data_of(images, changes or []), out, packing, workers), shlex.quote(f"data={out}"))
    )


def _size(text: str) -> tuple[int, int] | None:
    """Height and width of "224" or "224x336"; None for the encoder's own."""
    if not text:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < len(side) < 6 and int(side) > 0 for side in sides):
        raise InputError(f"--image-size {text}: write a side in pixels, or HEIGHTxWIDTH, such as 224x336")
    return int(sides[0]), int(sides[-1])
