"""Facts about this machine and what is installed on it. Standard library only."""

import ctypes
import importlib.metadata
import importlib.util
import math
import os
import sys
from pathlib import Path


def cpu_count() -> int:
    """Return how many CPUs this process may use: its affinity, cut to the container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def cgroup_quota(root: Path) -> float | None:
    """Return the CPU quota of a container (cgroup v2, then v1), or `None` when there is none."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        micros = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return None if micros <= 0 else micros / int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


def nvidia_driver() -> bool:
    """Return whether an NVIDIA driver can be loaded."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def installed(package: str) -> bool:
    """Return whether `package` can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def onnxruntime_distributions() -> tuple[str, ...]:
    """Return the installed wheels that provide onnxruntime, such as `("onnxruntime-gpu",)`."""
    known = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
    return tuple(name for name in known if _has_distribution(name))


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
