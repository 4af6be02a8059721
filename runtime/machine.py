"""Facts about this machine and what is installed on it. Standard library only."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import Any

_NVIDIA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"
# As cuda.h numbers what can be asked of a GPU.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


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


def cudnn_obstacle() -> str | None:
    """Return why cuDNN cannot be loaded; `None` where it can, or already is."""
    try:
        ctypes.CDLL(_CUDNN)
    except OSError as error:
        return str(error)
    return None


def gpu_name(index: int) -> str | None:
    """Return the name that the driver has for an NVIDIA GPU, such as `NVIDIA H200`; `None` where there is none."""
    name = ctypes.create_string_buffer(256)
    driver, number = _gpu(index)
    if driver is None or driver.cuDeviceGetName(name, 256, number):
        return None
    return name.value.decode()


def gpu_capability(index: int) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU, such as (9, 0); `None` where there is none."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver, number = _gpu(index)
    if driver is None or driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, number):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, number):
        return None
    return major.value, minor.value


def _gpu(index: int) -> tuple[Any, ctypes.c_int]:
    """Return the driver and its handle of a GPU; no driver where there is none, or no such GPU."""
    number = ctypes.c_int()
    with contextlib.suppress(OSError):
        driver = ctypes.CDLL(_NVIDIA_DRIVER)
        if not driver.cuInit(0) and not driver.cuDeviceGet(ctypes.byref(number), index):
            return driver, number
    return None, number


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


def older_than(distribution: str, oldest: str) -> str | None:
    """Return the version of an installed wheel where it is older than `oldest`; `None` where it is not, or unknown."""
    from packaging.version import InvalidVersion, Version

    with contextlib.suppress(InvalidVersion):
        if (wheel := _distribution(distribution)) and Version(wheel.version).release < Version(oldest).release:
            return wheel.version
    return None


def onnxruntime_distributions() -> tuple[str, ...]:
    """Return the wheels that provide the onnxruntime which is imported, such as `("onnxruntime-gpu",)`.

    Several in one folder have overwritten each other. Of several in folders of their own, the first on the path counts.
    """
    known = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
    found = {name: wheel for name in known if (wheel := _distribution(name))}
    spec = importlib.util.find_spec("onnxruntime") if len(found) > 1 else None
    imported = {Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()}
    places = {name: Path(str(wheel.locate_file("onnxruntime"))).resolve() for name, wheel in found.items()}
    return tuple([name for name in found if places[name] in imported] or found)


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
