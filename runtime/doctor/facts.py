"""What is known about a machine: plain data, which the checks look at."""

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.doctor.probes import Probed


@dataclass(frozen=True)
class Host:
    """The machine, its Python, and what of this project's is set in the environment."""

    python: str
    system: str
    cpus: int
    release: str | None
    backbones: int = 0
    broken_plugins: tuple[str, ...] = ()
    on_fallback: str | None = None


@dataclass(frozen=True)
class Gpu:
    """What the NVIDIA driver tells; the version is that of the CUDA it knows, such as `13000` for 13.0."""

    driver: bool = False
    version: str | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extra:
    """An extra of this package: what of it is installed (in any version), what is not, and what is too old."""

    name: str
    present: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredModel:
    """What lies in the folder of artifacts of one model.

    Attributes:
        problem: Why its manifest cannot be used; nothing else is known then.
        artifacts, bytes: How many, and of all their files.
        damaged: What is wrong with files that the manifest lists.
        rebuild: The commands that make the damaged artifacts anew.
        outdated: The commands that make anew what another recipe made.
        versions: Of the tools that made the artifacts: each set of them once.
        unlisted: Bytes of files that the manifest does not list.
        registered: Whether a backbone of that name is registered here.
    """

    name: str
    problem: str | None = None
    artifacts: int = 0
    bytes: int = 0
    damaged: tuple[str, ...] = ()
    rebuild: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    versions: tuple[Mapping[str, str], ...] = ()
    unlisted: int = 0
    registered: bool = True


@dataclass(frozen=True)
class StoreFacts:
    """The folder of artifacts.

    Attributes:
        named_by: What names the folder.
        remote: It is no folder but a repository of the Hugging Face hub.
        unreadable, unwritable: The system's reason; `None` if it can be read and written.
        unfinished: How many builds are going on, or died.
        fetched: How many models are being pulled, or were not to the end.
        hashed: Whether SHA-256 was compared, not sizes alone.
    """

    root: str
    named_by: str
    exists: bool = True
    unreadable: str | None = None
    unwritable: str | None = None
    models: tuple[StoredModel, ...] = ()
    unfinished: int = 0
    fetched: int = 0
    hashed: bool = False
    remote: bool = False


@dataclass(frozen=True)
class Hub:
    """The Hugging Face hub, as it is seen from here.

    Attributes:
        status: HTTP status of asking it who we are; `None` where it was not asked or gave no answer.
        trouble: Why it gave none.
    """

    endpoint: str
    offline: bool = False
    token: bool = False
    status: int | None = None
    user: str | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class Facts:
    """Everything the checks look at. A library that is not installed was not probed."""

    host: Host
    gpu: Gpu
    wheels: Mapping[str, str]
    store: StoreFacts
    hub: Hub
    extras: tuple[Extra, ...] = ()
    onnxruntime: Probed | None = None
    torch: Probed | None = None
    openvino: Probed | None = None
