"""training.compile with several ranks."""

import subprocess
import sys
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

from tests.distributed.runs import logged

ROOT = Path(__file__).parents[2]


@pytest.mark.distributed
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_blocks_log_what_one_process_logs(tmp_path: Path, images: Path, single: Path, parallel: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.distributed.compiled_run", images, tmp_path / "run", parallel]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert_allclose(logged(tmp_path / "run"), logged(single), rtol=1e-5)
