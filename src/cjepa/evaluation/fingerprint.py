"""What tells the images of an evaluation from others of the same names."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from cjepa.errors import InputError


def fingerprint_of(paths: Iterable[Path]) -> str:
    """Changes when the files' order, names, folders or sizes do; their content is not read.

    InputError for a file that is not there, such as a link whose target is gone.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputError(f"{path} cannot be found: {error.strerror}; replace or remove it") from error
        digest.update(f"{path.parent.name}/{path.name} {size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
