"""Shape checks of every annotated function and dataclass of the package, for all tests."""

import errno
import fcntl
import os

# One thread per worker process: results do not depend on the number of cores, and two workers share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

install_import_hook("cjepa", "beartype.beartype")


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system like some NFS and Lustre mounts."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
