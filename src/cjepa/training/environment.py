"""What a run ran on, for environment.json: enough to repeat it, nothing secret."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cjepa.ranks import world_size

_PACKAGES = (
    "cjepa",
    "torch",
    "numpy",
    "pillow",
    "safetensors",
    "pydantic",
    "scikit-learn",
    "scikit-image",
    "torchvision",
)
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
"""Of a processor: those that decide how fast a training is, in which processors of one name differ."""
_SECRET_VALUE = re.compile(r"(?i)([a-z0-9_.-]*(?:token|secret|password|passwd|api_?key|credential)[a-z0-9_.-]*=).+")
_SECRET_IN_ADDRESS = re.compile(r"://[^/@\s]+@")


def describe_environment() -> dict[str, Any]:
    """Interpreter, machine, devices, package versions, commit and command line, ready for JSON.

    Environment variables are never read into it, and values on the command line that look like credentials are
    blotted out (reliability.md, F40).
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "model": _cpu_model(),
            "instructions": [name for name in INSTRUCTIONS if torch.cpu.get_capabilities().get(name)],
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "devices": _devices(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "command": [Path(sys.argv[0]).name, *(_redact(argument) for argument in sys.argv[1:])],
    }


def essentials(device: torch.device) -> dict[str, Any]:
    """What the last bits of a training depend on besides its config and images; every checkpoint says it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    versions = {package: _version(package) or "unknown" for package in ("cjepa", "torch", "pillow")}
    return {**versions, "device": name, **threads, "ranks": world_size()}


def _redact(argument: str) -> str:
    return _SECRET_IN_ADDRESS.sub("://***@", _SECRET_VALUE.sub(r"\1***", argument))


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return names[0] if names else platform.processor()


def _devices() -> list[dict[str, Any]]:
    if torch.backends.mps.is_available():
        return [{"name": "mps"}]
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": each.name, "memory": each.total_memory, "capability": f"{each.major}.{each.minor}"}
        for each in properties
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout that tracks the package in `folder`; None when there is none.

    An installed package may lie inside somebody else's repository, whose commit says nothing: hence ls-files.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"hash": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command that changes nothing; None when git, the repository or the answer is missing."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
