"""What becomes of every file of the zoo: outcome, pixels, memory and time, measured under a limit of 2 GB.

    python tests/data/golden.py        # prints the table; --write keeps it in tests/data/zoo.json

Only the decoder is loaded, as a file: the whole package brings torch, whose libraries alone exceed the limit.
"""

import hashlib
import importlib.util
import json
import resource
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).parent / "zoo.json"
LIMIT = 2 << 30
"""Bytes of address space."""
MAX_PIXELS = 64_000_000


def loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def peak() -> int:
    """Most memory held since `forget_peak`, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measured() -> dict[str, dict[str, Any]]:
    """A row for each file."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    zoo = loaded("zoo", ROOT / "tests" / "data" / "zoo.py")
    decoding = loaded("decoding", ROOT / "src" / "cjepa" / "data" / "decoding.py")
    assert "torch" not in sys.modules
    files = {name: make() for name, make in zoo.ZOO.items()}
    decoding.decode(files["plain.jpg"], MAX_PIXELS)  # what is imported only once
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    return {name: row(decoding, data) for name, data in files.items()}


def row(decoding: ModuleType, data: bytes) -> dict[str, Any]:
    """Outcome, pixels as size, hash and mean, MiB beyond the file's own and milliseconds."""
    forget_peak()
    before, started = peak(), time.process_time()
    found: dict[str, Any]
    try:
        image = decoding.decode(data, MAX_PIXELS)
        found = {"outcome": "read", "size": list(image.size)}
    except decoding.UnreadableImageError as error:
        image, found = None, {"outcome": str(error)}
    milliseconds = 1000 * (time.process_time() - started)
    mebibytes = (peak() - before) / 1024
    if image is not None:
        mean = [
            round(sum(i * n for i, n in enumerate(c.histogram())) / image.width / image.height) for c in image.split()
        ]
        found |= {"mean": mean, "sha256": hashlib.sha256(image.tobytes()).hexdigest()[:16]}
    return found | {"mebibytes": round(mebibytes, 1), "milliseconds": round(milliseconds, 1)}


if __name__ == "__main__":
    rows = measured()
    if "--write" in sys.argv:
        TABLE.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n}\n")
    print(json.dumps(rows))
