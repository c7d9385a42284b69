"""A plain and a compiled run of a few steps, for tests/training/test_compiling.py.

A process of its own: the tests check the shapes of every call, which a compiler does not see through. Prints what it
found as JSON.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from tests.training.conftest import tiny_config, training
from tests.training.harness import Run, everything


def compared(folder: Path, changes: dict[str, object]) -> dict[str, Any]:
    """Both runs to their end: how far their weights are apart, and how many programs that took."""
    runs = {
        compiled: Run(
            tiny_config(training=training(epochs=2) | changes | {"compile": compiled}), folder / str(compiled)
        )
        for compiled in (False, True)
    }
    stream = runs[True].stream
    lengths = set()
    for step in range(runs[True].trainer.total_steps):
        masks = stream.sampler(step, 0, 1)
        lengths.add((masks.context.shape[1], masks.targets.shape[2]))
    for run in runs.values():
        run.train()
    plain, fast = (everything(run.trainer) for run in runs.values())
    again = Run(tiny_config(training=training(epochs=2) | changes), folder / "True")  # continued, not compiled
    return {
        "same_names": plain.keys() == fast.keys(),
        "furthest": max(float((plain[name] - fast[name]).abs().max()) for name in plain),
        "continues": all(torch.equal(fast[name], tensor) for name, tensor in everything(again.trainer).items()),
        "lengths": len(lengths),
        "programs": counters["stats"]["unique_graphs"],
        "breaks": dict(counters["graph_break"]),
        "given_up": dict(counters["recompile_limit"]),
        "inductor": sum(counters["inductor"].values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", help="aot_eager runs programs operation by operation; inductor compiles for minutes")
    parser.add_argument("changes", nargs="?", type=json.loads, default={}, help="keys of training as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend=arguments.backend)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compared(Path(folder), arguments.changes)))


if __name__ == "__main__":
    main()
