"""Two hosts train together, one process is killed, the job restarts by itself and ends as if nothing had happened.

    python -m benchmarks.two_hosts [--data CIFAR10] [--preset cifar10 [--batch 32]] [--steps 100] [--save]

The hosts are two network namespaces joined by a virtual cable (Linux, root, iproute2), or, where those cannot be made,
two agents on this machine's loopback. torchrun's agents find each other by the c10d rendezvous and start
`cjepa pretrain` on every rank, with the preset's own batch unless --batch names another. First an undisturbed run, then
one in which a rank of the second host gets SIGKILL after half the steps; both must end with the same bits. Without
--data the images are the demo's. With --save it writes benchmarks/results/two_hosts.json, or two_hosts-PRESET.json for
another preset.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cjepa.config.presets import resolve
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.environment import describe_environment
from cjepa.training.metrics import read_metrics

RESULTS = Path(__file__).parent / "results" / "two_hosts.json"
PRESET, PORT = "cifar10-small", 29517
IMAGES = {"cifar10": 50_000, "demo": 5_400}
SAVES = 5
"""Checkpoints of a run."""
PATIENCE = 3600.0
"""Seconds after which a run counts as hung."""


@dataclass(frozen=True)
class Host:
    """Where an agent runs: what its commands begin with, its address, and the network device of that."""

    prefix: tuple[str, ...]
    address: str
    interface: str


@contextlib.contextmanager
def hosts() -> Iterator[list[Host]]:
    """Two hosts: network namespaces if they can be made, else twice this one."""
    names, addresses = ("cjepa-a", "cjepa-b"), ("10.77.0.1", "10.77.0.2")
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add veth-a netns {names[0]} type veth peer name veth-b netns {names[1]}"]
    for name, address, device in zip(names, addresses, ("veth-a", "veth-b"), strict=True):
        inside = f"ip netns exec {name}"
        commands += [f"{inside} ip addr add {address}/24 dev {device}", f"{inside} ip link set {device} up"]
        commands += [f"{inside} ip link set lo up"]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        yield [
            Host(("ip", "netns", "exec", name), address, device)
            for name, address, device in zip(names, addresses, ("veth-a", "veth-b"), strict=True)
        ]
    except (OSError, subprocess.CalledProcessError):
        yield [Host((), "127.0.0.1", "lo")] * 2
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def start(host: Host, first: Host, job: str, each: int, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """One agent with its ranks, in a process group of its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(each)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first.address}:{PORT}", "--rdzv-id", job]
    # Which agent keeps the meeting point is told by address on real hosts; both namespaces have this machine's name.
    torchrun += ["--rdzv-conf", f"is_host={int(log.name.endswith('0.log'))}"]
    torchrun += ["--local-addr", host.address, "--max-restarts", "3", "-m", "cjepa", *arguments]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [*host.prefix, *torchrun], stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def ranks_of(agent: int) -> list[int]:
    """The process ids of the ranks that an agent started: its children, or those of its namespace's command."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(child) for child in children if b"cjepa" in Path(f"/proc/{child}/cmdline").read_bytes()]


def steps_taken(folder: Path) -> int:
    """The last step in the metrics of a run."""
    path = folder / "metrics.jsonl"
    return max((row["step"] for row in read_metrics(path)), default=0) if path.exists() else 0


def train(
    places: list[Host], folder: Path, job: str, each: int, command: Sequence[str], kill_at: int | None
) -> dict[str, Any]:
    """Run to the end, with a rank of the second host killed at a step; what was seen."""
    started, killed_at = time.monotonic(), None
    logs = [folder.with_name(f"{folder.name}-host-{index}.log") for index in range(2)]
    command = [*command, "--out", str(folder)]
    agents = [start(host, places[0], job, each, command, log) for host, log in zip(places, logs, strict=True)]
    try:
        while any(agent.poll() is None for agent in agents):
            if time.monotonic() - started > PATIENCE:
                raise TimeoutError(f"{folder} did not end; see {logs[0]}")
            if kill_at is not None and killed_at is None and steps_taken(folder) >= kill_at:
                victims = ranks_of(agents[1].pid)
                os.kill(victims[-1], signal.SIGKILL)
                killed_at = steps_taken(folder)
            time.sleep(0.2)
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    codes = [agent.returncode for agent in agents]
    if codes != [0, 0]:
        raise RuntimeError(f"the agents ended with {codes}:\n" + "\n".join(log.read_text()[-3000:] for log in logs))
    continued = (folder / "train.log").read_text().count("continuing after step")
    return {"killed_at": killed_at, "continued": continued, "seconds": round(time.monotonic() - started, 1)}


def digests(folder: Path, step: int) -> dict[str, str]:
    """sha256 of weights, average and moments after a step."""
    path = CheckpointStore(folder / "checkpoints").load(step).path
    return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.glob("*.safetensors"))}


def settings(data: Path | None, steps: int, batch: int) -> list[str]:
    """The preset's changes: how long, how often it saves, and a small evaluation at both ends."""
    images = IMAGES["demo" if data is None else "cifar10"]
    epoch = images / batch
    source = "data.source=demo" if data is None else f"data={data}"
    return [
        source,
        f"training.batch_size={batch}",
        f"training.epochs={steps / epoch:.6f}",
        f"training.checkpoint_every={steps / SAVES / epoch:.6f}",
        f"training.evaluate_every={steps / epoch:.6f}",
        f"training.optimizer.learning_rate.warmup_epochs={steps / 10 / epoch:.6f}",
        *("training.device=cpu", "training.log_every=1", "monitor.train_images=500", "monitor.test_images=250"),
    ]


def main() -> None:
    """Both runs, the comparison, and the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as a folder of images; else the demo's photographs")
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--batch", type=int, help="images of a step; by default the preset's")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1, help="ranks on each host")
    parser.add_argument("--save", action="store_true", help="write the result file")
    options = parser.parse_args()
    batch = options.batch or resolve(options.preset, []).training.batch_size
    command = ["pretrain", options.preset, *settings(options.data, options.steps, batch)]
    with tempfile.TemporaryDirectory() as temporary, hosts() as places:
        folder = Path(temporary)
        undisturbed = train(places, folder / "undisturbed", "one", options.ranks, command, None)
        disturbed = train(places, folder / "disturbed", "two", options.ranks, command, options.steps // 2)
        right, found = (digests(folder / name, options.steps) for name in ("undisturbed", "disturbed"))
    if not disturbed["continued"]:
        raise RuntimeError("the killed run did not continue from a checkpoint")
    result = {
        "environment": describe_environment(),
        "hosts": "network namespaces" if places[0].prefix else "agents on loopback",
        "images": "demo" if options.data is None else "cifar10",
        "preset": options.preset,
        "batch": batch,
        "ranks": 2 * options.ranks,
        "steps": options.steps,
        "undisturbed": undisturbed,
        "disturbed": disturbed,
        "sha256": {"undisturbed": right, "disturbed": found},
        "bit_equal": right == found,
    }
    print(json.dumps({key: value for key, value in result.items() if key not in ("environment", "sha256")}, indent=1))
    if options.save:
        results = RESULTS if options.preset == PRESET else RESULTS.with_stem(f"two_hosts-{options.preset}")
        results.write_text(json.dumps(result, indent=1) + "\n")
    if right != found:
        sys.exit("the disturbed run ended with other bits")


if __name__ == "__main__":
    main()
