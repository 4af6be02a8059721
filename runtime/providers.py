"""Which onnxruntime execution providers to ask for, and why. Pure decisions; `backends/onnx.py` carries them out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import DependencyError, DeviceError

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
NO_DRIVER = "no NVIDIA driver is present (libcuda cannot be loaded)"
ON_GPU = (CUDA, "TensorrtExecutionProvider")
# The first NVIDIA GPUs that multiply bfloat16.
BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Installation:
    """What is known before a session is created.

    Attributes:
        distributions: Installed onnxruntime wheels.
        providers: Providers this onnxruntime was built with (not proof that they start).
        driver: Whether an NVIDIA driver can be loaded.
    """

    distributions: tuple[str, ...]
    providers: tuple[str, ...]
    driver: bool


@dataclass(frozen=True)
class Choice:
    """The providers to ask for.

    Attributes:
        providers: In order of preference.
        required: The provider that must really start; `None` when any of them will do.
        reason: Why, in a sentence.
    """

    providers: tuple[str, ...]
    required: str | None
    reason: str


def check_installation(distributions: Sequence[str], importable: bool) -> None:
    """Raise unless exactly one onnxruntime is installed.

    Raises:
        DependencyError: None is installed, or two overwrite each other.
    """
    if len(distributions) > 1:
        names = " and ".join(distributions)
        raise DependencyError(
            f"{names} are both installed; they write the same folder, so the CUDA provider may be gone. "
            f"Run: pip uninstall -y {' '.join(distributions)}, then pip install 'backbone-runtime[gpu]' "
            "(serves on CPUs too) or 'backbone-runtime[cpu]'."
        )
    if not importable:
        raise DependencyError(
            "backend='onnx' needs onnxruntime, which is not installed. "
            "Run: pip install 'backbone-runtime[gpu]' (serves on CPUs too) or 'backbone-runtime[cpu]'."
        )


def parse_device(device: str | None) -> tuple[str | None, int]:
    """Return the kind of device (`None`, `cpu` or `cuda`) and its index.

    Raises:
        DeviceError: Anything else.
    """
    if device is None:
        return None, 0
    kind, _, index = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index not in ("", "0")):
        raise DeviceError(
            f"device={device!r} is not a device. Use None (CUDA if it starts, else the CPU), 'cpu', 'cuda' or 'cuda:1'."
        )
    return kind, int(index or 0)


def choose(device: str | None, providers: Sequence[str] | None, installation: Installation) -> Choice:
    """Return the providers to ask for.

    Args:
        device: `None`, `cpu`, `cuda` or `cuda:<index>`.
        providers: The caller's own list, taken as it is; the first must start.
        installation: What is known about this machine.

    Raises:
        DeviceError: What was asked for cannot start here, with the reason.
    """
    kind, _ = parse_device(device)
    if providers is not None:
        return _chosen_by_caller(kind, tuple(providers), installation)
    if kind == "cpu":
        return Choice((CPU,), CPU, "device='cpu' was asked for")
    obstacle = cuda_obstacle(installation)
    if kind == "cuda":
        if obstacle:
            raise DeviceError(f"device={device!r}: {obstacle}. Or use device='cpu'.")
        return Choice((CUDA, CPU), CUDA, f"device={device!r} was asked for")
    if obstacle:
        return Choice((CPU,), CPU, obstacle)
    return Choice((CUDA, CPU), None, "this onnxruntime has the CUDA provider and an NVIDIA driver is present")


def cuda_obstacle(installation: Installation) -> str | None:
    """Return why the CUDA provider cannot start, as far as is known without trying."""
    if CUDA not in installation.providers:
        wheel = ", ".join(installation.distributions) or "the installed onnxruntime"
        return (
            f"{wheel} was built without the CUDA provider (it has {', '.join(installation.providers)}); for CUDA run "
            f"pip uninstall -y {wheel}, then pip install 'backbone-runtime[gpu]'"
        )
    if not installation.driver:
        return NO_DRIVER
    return None


def precision_obstacle(precision: str, capability: tuple[int, int] | None) -> str | None:
    """Return why a GPU of this compute capability does not compute in a precision; `None` if it does, or may."""
    if precision != "bf16" or capability is None or capability >= BF16_CAPABILITY:
        return None
    return (
        f"precision='bf16': this GPU has compute capability {'.'.join(map(str, capability))}, and bfloat16 takes "
        f"{'.'.join(map(str, BF16_CAPABILITY))} (Ampere) or newer. Use precision='fp16' or 'fp32'."
    )


def _chosen_by_caller(kind: str | None, providers: tuple[str, ...], installation: Installation) -> Choice:
    if not providers:
        raise DeviceError(f"providers=[] names none. This onnxruntime has {', '.join(installation.providers)}.")
    missing = [p for p in providers if p not in installation.providers]
    if missing:
        raise DeviceError(
            f"providers={list(providers)}: {', '.join(missing)} is not in this onnxruntime, "
            f"which has {', '.join(installation.providers)}."
        )
    if kind is not None and (kind == "cuda") != (providers[0] in ON_GPU):
        raise DeviceError(f"device={kind!r} contradicts providers={list(providers)}: leave one of them out.")
    return Choice(providers, providers[0], "chosen by the caller")


def refused(required: str, got: Sequence[str], messages: str) -> str:
    """Return the error text for a session that did not get the provider it was asked for."""
    return (
        f"onnxruntime could not start {required} and fell back to {', '.join(got)}. Cause: {cause(messages)}. "
        "Install the CUDA and cuDNN libraries this onnxruntime needs (pip install 'onnxruntime-gpu[cuda,cudnn]', "
        "or a matching torch), or use device='cpu'."
    )


# In onnxruntime's messages, the most telling first: its last one only says which CUDA release it wants.
_SIGNS = ("cannot open shared object file", "Failed to load library", "CUDA failure", "[E:", "Error", "Failed")


def cause(messages: str) -> str:
    """Return the line of onnxruntime's messages that tells why a provider did not start, without its decoration."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in messages.splitlines()]
    for sign in _SIGNS:
        for line in lines:
            if sign in line:
                told = line.rpartition(" with error: ")[2]
                return re.sub(r"^\S+ \S+ \[\w:.*?\] ", "", told).rstrip(".")
    return "onnxruntime gave no reason"
