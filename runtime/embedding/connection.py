"""The connection to a Ray cluster: where it is, which nodes it has, and what Ray says when it fails."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

from runtime.embedding.actors import Node
from runtime.errors import ClusterError, DependencyError, OptionError
from runtime.machine import installed

# A port that does not answer by then has no cluster behind it; Ray itself would try for minutes.
CONNECT_SECONDS = 5


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, unless this process is connected to one, which then is used and stays.

    Raises:
        DependencyError: ray is missing.
        ClusterError: No cluster answers there.
        OptionError: The address is none.
    """
    if absent := [package for package in ("ray", "pyarrow", "pandas") if not installed(package)]:
        raise DependencyError(f"engine='ray' needs {', '.join(absent)}: pip install 'backbone-runtime[ray]'.")
    import ray

    if ray.is_initialized():
        yield
        return
    _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        cause = error.__cause__ or error.__context__ or error  # what Ray says itself is only that it failed
        raise ClusterError(_no_cluster(address or "this machine", str(cause))) from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Node]:
    """Return the machines of the cluster that are alive."""
    import ray

    list_nodes: Any = ray.nodes  # without annotations

    alive = [(node["NodeManagerAddress"], node["Resources"]) for node in list_nodes() if node["Alive"]]
    return [Node(address, has.get("CPU", 0), has.get("GPU", 0)) for address, has in alive]


def _check_address(address: str | None) -> None:
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise OptionError(
            f"address={address!r} is not HOST:PORT of a Ray cluster's head, such as 10.0.0.5:6379, nor 'auto'. The "
            "command runs on a node of the cluster (ray:// would not do): see `ray job submit`."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(_no_cluster(str(address), str(error))) from error


def _no_cluster(address: str, reason: str) -> str:
    return (
        f"No Ray cluster answers at {address}: {reason}. Start one with `ray start --head --port=6379`, and "
        "`ray start --address=HOST:6379` on the other nodes; `ray status` shows it. Without an address this machine "
        "alone is used."
    )


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Turn Ray's errors into ours."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(
            f"Ray could not go on: {type(error).__name__}: {said[-1] if 'Traceback' in str(error) else said[0]} "
            "What was published stays: when the cluster is mended, run the same command with --resume."
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray Data's own reports off the terminal; they are in its log files."""
    handlers = [one for one in logging.getLogger("ray.data").handlers if isinstance(one, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
