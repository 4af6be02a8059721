"""What a report says about the machine and the versions it was made with."""

import importlib.metadata
import os
import platform
from pathlib import Path

from runtime.machine import cpu_count, nvidia_driver

PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy")


def machine_facts() -> dict[str, str | int | dict[str, str]]:
    """Return processor, CPUs this process may use, memory, operating system and versions."""
    return {
        "processor": _processor(),
        "cpus": cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "nvidia_driver": "present" if nvidia_driver() else "none",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
