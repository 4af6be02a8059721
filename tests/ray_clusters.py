"""Ray clusters of these tests: nodes on loopback kept by a process of its own, and drivers beside them."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes loopback a node's address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
# Of a node, in bytes: Ray's least. Nothing large passes through it.
STORE = 78 * 2**20


@dataclass
class Nodes:
    """A cluster that is running, and who keeps it."""

    address: str
    keeper: subprocess.Popen[str]

    def kill(self, number: int) -> None:
        """Kill a node and all that runs on it, at once, as when its power fails."""
        self._tell(f"kill {number}")

    def _tell(self, line: str) -> str:
        assert self.keeper.stdin is not None
        assert self.keeper.stdout is not None
        self.keeper.stdin.write(f"{line}\n")
        self.keeper.stdin.flush()
        return self.keeper.stdout.readline()


@contextlib.contextmanager
def cluster(cpus: Sequence[int]) -> Iterator[Nodes]:
    """Give a cluster with a node for each of `cpus`."""
    command = [sys.executable, __file__, *map(str, cpus)]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, **streams) as keeper:
        assert keeper.stdout is not None
        try:
            yield Nodes(keeper.stdout.readline().strip(), keeper)
        finally:
            keeper.communicate()  # closes its input, which ends it and the nodes


def keep(cpus: Sequence[int]) -> None:
    """Start a cluster, tell its address, kill the nodes that are named, stop it when nobody can name any more."""
    from ray.cluster_utils import Cluster

    common = {"object_store_memory": STORE, "include_dashboard": False, "node_ip_address": "127.0.0.1", "num_gpus": 0}
    made = Cluster()
    nodes = [made.add_node(num_cpus=number, **common) for number in cpus]
    print(made.address, flush=True)
    for line in sys.stdin:
        made.remove_node(nodes[int(line.split()[1])], allow_graceful=False)
        print("killed", flush=True)
    made.shutdown()


def drive(given: dict[str, Any]) -> subprocess.Popen[str]:
    """Start `ray_driver.py`, a run of embed in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "ray_driver.py"), json.dumps(given)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a driver tells at its end."""
    out, err = driver.communicate(timeout=600)
    assert driver.returncode == 0, err
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


if __name__ == "__main__":
    keep([int(number) for number in sys.argv[1:]])
