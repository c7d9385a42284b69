"""One ONNX file for any batch, height and width."""

import warnings
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from cjepa.errors import InputError
from cjepa.export.parity import Difference, compare, probe, sizes
from cjepa.export.traceable import INPUT, OUTPUTS, trace
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.types import Part

MODEL = "model.onnx"
_MOST_IN_ONE_FILE = 1_500_000_000  # bytes; a protobuf cannot exceed 2 GiB


class OnnxConfig(Part):
    """model.onnx: normalised float32 images of any batch, height and width to patch and pooled embeddings."""

    name: Literal["onnx"] = "onnx"
    opset: int = Field(20, ge=18)
    """Version of ONNX's operators."""


def write_onnx(config: OnnxConfig, encoder: PretrainedEncoder, folder: Path) -> None:
    """Write the graph into an existing folder; weights of more than 1.5 GB go into a file beside it.

    InputError for an opset that the exporter does not know: it would write another one, with a message in a log only.
    """
    import onnx

    weights = sum(parameter.nbytes for parameter in encoder.parameters())
    with warnings.catch_warnings():  # the exporter warns about its own use of what torch deprecates
        warnings.simplefilter("ignore")
        torch.onnx.export(
            trace(encoder),
            f=str(folder / MODEL),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=config.opset,
            external_data=weights > _MOST_IN_ONE_FILE,
            verbose=False,
        )
    imported = onnx.load(folder / MODEL, load_external_data=False).opset_import
    written = next((each.version for each in imported if each.domain in ("", "ai.onnx")), None)
    if written != config.opset:
        raise InputError(
            f"opset={config.opset} cannot be written by the exporter that is installed (it wrote {written}); choose a "
            "smaller one, or leave it out"
        )


def check_onnx(encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    """onnxruntime against the encoder at three sizes and two batch sizes; the largest differences."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
    differences = []
    for count, size in enumerate(sizes(encoder), start=1):
        images = probe(encoder, size, count)
        expected = encoder(images)
        patches, pooled = (torch.from_numpy(array) for array in session.run(list(OUTPUTS), {INPUT: images.numpy()}))
        what = f"onnxruntime, {count} of {size[0]} x {size[1]}"
        differences += [
            compare(f"{what}: patches", expected, patches),
            compare(f"{what}: pooled", expected.mean(dim=1), pooled),
        ]
    return differences


def load_onnx(folder: Path) -> str:
    """Python that opens it."""
    return (
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{folder / MODEL}")\n'
        f'patches, pooled = session.run(None, {{"{INPUT}": normalised}})  # float32 [B, 3, H, W]'
    )
