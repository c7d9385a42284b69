"""Functions run on several gloo ranks of this machine; what goes wrong on one of them is raised here.

Processes are forked from a server that has everything imported, so that a group of ranks starts in a fraction of a
second. Every call has a time limit; a group that exceeds it is killed and the stacks of its ranks are shown.
"""

import faulthandler
import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

LIMIT = 60.0
"""Seconds that a group of ranks may take."""


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.conftest", "tests.distributed.preload"])
    return context


def on_ranks(
    count: int, function: Callable[..., Any], *arguments: Any, limit: float = LIMIT, local: int = 0
) -> list[Any]:
    """What `function(*arguments)` returns on each of `count` connected ranks, `local` of them on each machine."""
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    processes = [
        _context().Process(target=_run, args=(folder, rank, count, local or count, limit, function, arguments))
        for rank in range(count)
    ]
    try:
        for process in processes:
            process.start()
        _wait(processes, folder, time.monotonic() + limit + 10)
        return [_result(folder, rank) for rank in range(count)]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(processes: list[Any], folder: Path, deadline: float) -> None:
    """Until all ended, or one failed and the others had a moment to follow."""
    while any(process.is_alive() for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.exitcode not in (None, 0)]
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    for rank in range(len(processes)):
        error = folder / f"{rank}.error"
        if error.exists():
            raise AssertionError(f"rank {rank} of {len(processes)} failed:\n{error.read_text()}")
    for rank, process in enumerate(processes):
        if process.exitcode != 0:
            stacks = "\n".join(path.read_text() for path in sorted(folder.glob("*.stacks")))
            raise AssertionError(f"rank {rank} of {len(processes)} ended with {process.exitcode}\n{stacks}")


def _run(
    folder: Path,
    rank: int,
    count: int,
    local: int,
    limit: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    os.environ["LOCAL_WORLD_SIZE"], os.environ["LOCAL_RANK"] = str(local), str(rank % local)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(count)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "localhost", "0"
    with (folder / f"{rank}.stacks").open("w") as stacks:
        faulthandler.dump_traceback_later(limit, exit=True, file=stacks)
        try:
            if count > 1:
                dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
            torch.save(function(*arguments), folder / f"{rank}.result")
            if count > 1:
                dist.barrier()
                dist.destroy_process_group()
        except BaseException:
            (folder / f"{rank}.error").write_text(traceback.format_exc())
            os._exit(1)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _result(folder: Path, rank: int) -> Any:
    import torch

    return torch.load(folder / f"{rank}.result", weights_only=False)
