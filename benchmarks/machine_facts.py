"""What a report says about the machine and the versions it was made with."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from runtime.machine import cpu_count, nvidia_driver
from runtime.manifest import RECIPE

PACKAGES = (
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "optimum-onnx",
    "numpy",
)


def machine_facts() -> dict[str, Any]:
    """Return processor, CPUs this process may use, memory, operating system, versions, and which code is measured."""
    return {
        "processor": _processor(),
        "cpus": cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "nvidia_driver": "present" if nvidia_driver() else "none",
        "gpu": _gpu(),
        "code": _code(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def available_mb() -> float:
    """Return the memory that new processes may take, in megabytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2e6


def _gpu() -> str:
    """Return the name of the first GPU and its driver's version, or `none`."""
    if not shutil.which("nvidia-smi"):
        return "none"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    told = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return told.stdout.strip() if not told.returncode else "none"


def _code() -> str:
    """Return which of this project's code was measured: artifacts depend on the recipe, the rest on the commit."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=10", "--dirty"]
    try:
        told = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        told = ""
    return f"recipe {RECIPE}, " + (f"commit {told}" if told else "no commit")


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
