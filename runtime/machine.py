"""Facts about this machine and what is installed on it. Standard library only."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import math
import os
import sys
from pathlib import Path

_NVIDIA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


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
    try:
        ctypes.CDLL(_NVIDIA_DRIVER)
    except OSError:
        return False
    return True


def gpu_name(index: int) -> str | None:
    """Return the name that the driver has for an NVIDIA GPU, such as `NVIDIA H200`; `None` where there is none."""
    number, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    try:
        driver = ctypes.CDLL(_NVIDIA_DRIVER)
    except OSError:
        return None
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(number), index) or driver.cuDeviceGetName(name, 256, number):
        return None
    return name.value.decode()


def driver_version() -> str | None:
    """Return the version of CUDA that the NVIDIA driver knows, as it spells it: `13000` is 13.0."""
    number = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        if not ctypes.CDLL(_NVIDIA_DRIVER).cuDriverGetVersion(ctypes.byref(number)):
            return str(number.value)
    return None


def engine_machine(index: int) -> dict[str, str | None]:
    """Return what an engine of TensorRT is tied to: names and versions of the GPU, its driver and the libraries."""
    versions: dict[str, str | None] = {"gpu": gpu_name(index), "driver": None, "tensorrt": None}
    versions["driver"] = driver_version()
    with contextlib.suppress(OSError, AttributeError):
        versions["tensorrt"] = str(ctypes.CDLL("libnvinfer.so.10").getInferLibVersion())
    for name in onnxruntime_distributions():
        versions[name] = importlib.metadata.version(name)
    return versions


def user_cache() -> Path:
    """Return the folder for what can be made again, of this user."""
    import platformdirs

    return platformdirs.user_cache_path("backbone-runtime", appauthor=False)


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
