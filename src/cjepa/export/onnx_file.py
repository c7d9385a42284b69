"""One ONNX file for any batch, height and width."""

import warnings
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from cjepa.errors import InputError
from cjepa.export.parity import Difference, compare, probe, sizes
from cjepa.export.preparation import NOTE, preparation_text
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

    The model's metadata say how images become its inputs. InputError for an opset that the exporter does not know: it
    would write another one, with a message in a log only.
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
    model = onnx.load(folder / MODEL, load_external_data=False)
    written = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), None)
    if written != config.opset:
        raise InputError(
            f"opset={config.opset} cannot be written by the exporter that is installed (it wrote {written}); choose a "
            "smaller one, or leave it out"
        )
    model.metadata_props.add(key=NOTE, value=preparation_text(encoder))
    onnx.save(model, folder / MODEL)


def check_onnx(encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    """onnxruntime against the encoder at three sizes and two batch sizes; the largest differences."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map[NOTE] == preparation_text(encoder)
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
        "import json\n\nimport numpy as np\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{folder / MODEL}")\n'
        f'how = json.loads(session.get_modelmeta().custom_metadata_map["{NOTE}"])  # how["steps"] says it in words\n'
        'mean, std = (np.array(how[key], "float32").reshape(3, 1, 1) for key in ("mean", "std"))\n'
        'normalised = (images.astype("float32") / 255 - mean) / std  # images: uint8 [B, 3, H, W]\n'
        f'patches, pooled = session.run(None, {{"{INPUT}": normalised}})'
    )
