"""Shape checks of every annotated function and dataclass of the package, for all tests."""

import os

# One thread per worker process: results do not depend on the number of cores, and two workers share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("cjepa", "beartype.beartype")
