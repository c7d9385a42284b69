"""A run of compiled blocks on the ranks that torchrun started, for test_compiling_on_ranks.py.

Processes of their own: those of the other tests check the shapes of every call, which a compiler does not see through.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from cjepa.runs import pretrain
from tests.distributed.runs import config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parallel", choices=("ddp", "fsdp"))
    arguments = parser.parse_args()
    # Programs run operation by operation: a compiler takes minutes.
    torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    pretrain(config(arguments.images, {"parallel": arguments.parallel, "compile": True}), arguments.folder)


if __name__ == "__main__":
    main()
