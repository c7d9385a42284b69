"""What a file of a graph says about its inputs, for those who have it without the model card."""

import json
from dataclasses import asdict

from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.weights.contents import PREPARED

NOTE = PREPARED
"""Key of the note in the file."""
_STEPS = (
    "RGB pixels from 0 to 255. Cut the middle out of the image: of the largest part with the aspect of image_size "
    "(height, width), evaluation_crop of either side. Resize it to image_size, bilinearly with antialiasing. Divide by "
    "255, subtract mean, divide by std, a number for each channel. The input is float32 [batch, 3, height, width]; "
    "other heights and widths that patch_size divides will do."
)


def preparation_text(encoder: PretrainedEncoder) -> str:
    """How images become inputs, as a JSON object: `steps` in words, and the numbers that they name."""
    return json.dumps({"steps": _STEPS, "patch_size": encoder.patch_size} | asdict(encoder.preparation))
