"""How many actors a cluster gets, and of what size: a pure decision from its nodes. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.artifacts import named_address, open_store
from runtime.errors import ClusterError, OptionError
from runtime.providers import ON_GPU, parse_device
from runtime.request import Request

# A session of more threads gains little by each of them; several sessions side by side do.
MOST_CPUS = 8
# What decodes for one GPU: Python's part of the work is done by one thread at a time.
MOST_CPUS_OF_A_GPU = 16


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, as Ray counts it."""

    address: str
    cpus: float
    gpus: float = 0


@dataclass(frozen=True)
class Actors:
    """So many actors, each of so many CPUs (threads of its session, and threads that decode) and GPUs (none or one)."""

    number: int
    cpus: int
    gpus: int = 0


def decide(nodes: Sequence[Node], request: Request, number: int | None = None, cpus: int | None = None) -> Actors:
    """Return the actors that fill the cluster, or those asked for.

    On GPUs one for each; elsewhere every node is shared out among actors of at most 8 CPUs.

    Args:
        nodes: Those that are alive.
        request: What the actors will serve; its device decides whether they need GPUs.
        number: Of actors, where it was asked for.
        cpus: Of each actor, likewise.

    Raises:
        ClusterError: The cluster has no room for one, or not for as many as were asked for.
        OptionError: A number below 1, or one GPU of several is named.
    """
    for name, value in (("actors", number), ("cpus_per_actor", cpus)):
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"{name}={value!r} must be an int of at least 1.")
    gpus = int(wants_gpu(request, any(node.gpus >= 1 for node in nodes)))
    given = _cpus(nodes, gpus) if cpus is None else cpus
    room = sum(_room(node, given, gpus) for node in nodes)
    if room < (number or 1):
        raise ClusterError(_no_room(nodes, Actors(number or 1, given, gpus), room))
    return Actors(number or room, given, gpus)


def wants_gpu(request: Request, available: bool) -> bool:
    """Return whether actors for `request` need a GPU each; where the request leaves it open, if there are any.

    Raises:
        OptionError: It names one GPU of several.
    """
    kind, index = parse_device(request.device)
    if index:
        raise OptionError(f"device={request.device!r}: Ray gives each actor a GPU of its own. Use device='cuda'.")
    if kind is not None:
        return kind == "cuda"
    if request.providers is not None:
        return bool(request.providers) and request.providers[0] in ON_GPU
    return available and request.backend != "openvino" and request.precision != "int8"


def _cpus(nodes: Sequence[Node], gpus: int) -> int:
    """Return CPUs of an actor such that the smallest node is used up."""
    if gpus:
        shares = [int(node.cpus // node.gpus) for node in nodes if node.gpus >= 1]
        return max(1, min([MOST_CPUS_OF_A_GPU, *shares])) if shares else 1
    smallest = min((int(n.cpus) for n in nodes if n.cpus >= 1), default=1)
    return smallest // -(-smallest // MOST_CPUS)


def _room(node: Node, cpus: int, gpus: int) -> int:
    by_cpus = int(node.cpus // cpus)
    return min(by_cpus, int(node.gpus)) if gpus else by_cpus


def _no_room(nodes: Sequence[Node], wanted: Actors, room: int) -> str:
    each = f"{wanted.cpus} CPU{'s' * (wanted.cpus > 1)}" + (" and a GPU" if wanted.gpus else "")
    seen = ", ".join(f"{n.address} ({n.cpus:g} CPUs, {n.gpus:g} GPUs)" for n in nodes[:8]) or "none"
    has = "no node of the cluster has that" if not room else f"the cluster has room for {room}"
    return (
        f"{wanted.number} actor{'s' * (wanted.number > 1)} of {each} {'each ' * (wanted.number > 1)}asked for, and "
        f"{has}. Nodes: {seen}{', ...' if len(nodes) > 8 else ''}. Add nodes, or lower --actors or --cpus-per-actor"
        f"{', or use --device cpu' if wanted.gpus else ''}."
    )


def placed(request: Request, actors: Actors) -> Request:
    """Return the request as each actor loads it: on what it was given, its files named so that any node finds them."""
    device = request.device if request.providers is not None else "cuda" if actors.gpus else "cpu"
    checkpoint = request.checkpoint_path
    return replace(
        request,
        device=device,
        threads=request.threads or actors.cpus,
        artifacts=_artifacts(request),
        checkpoint_path=None if checkpoint is None else str(Path(checkpoint).expanduser().absolute()),
    )


def _artifacts(request: Request) -> str:
    """Return the folder of artifacts, or the repository at one commit: a branch might move between two actors."""
    address = named_address(request.artifacts)
    if address is None:
        return str(open_store(request.artifacts).root.absolute())
    if request.backend == "eager":
        return str(address)  # nobody will ask for it
    from runtime.sharing import cached

    return str(cached.pin(request).artifacts)
