"""What tells the images of an evaluation from others of the same names."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def fingerprint_of(paths: Iterable[Path]) -> str:
    """Changes when the files' order, names, folders or sizes do; their content is not read."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
