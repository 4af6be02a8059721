"""Facts about the machine: processors that may be used, wheels that are installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import machine

ROOT = str(Path(runtime.__file__).parent.parent)
V1 = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": ""}, None),
        ({V1[0]: "-1\n", V1[1]: "100000\n"}, None),
        ({V1[0]: "150000\n", V1[1]: "100000\n"}, 1.5),
        ({V1[0]: "150000\n"}, None),
        ({V1[0]: "unlimited", V1[1]: "100000"}, None),
        ({"cpu.max": "300000 100000", V1[0]: "100000", V1[1]: "100000"}, 3.0),
        ({"cpu.max": "max 100000", V1[0]: "100000", V1[1]: "100000"}, None),
        ({"cpu.max": "?", V1[0]: "100000", V1[1]: "100000"}, 1.0),
    ],
)
def test_the_quota_of_a_container_is_read(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert machine.cgroup_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("allowed", "quota", "expected"), [(4, None, 4), (4, 0.5, 1), (4, 1.0, 1), (4, 1.5, 2), (4, 64.0, 4), (1, 2.0, 1)]
)
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system knows no affinity")
def test_the_smaller_of_affinity_and_quota_counts(
    allowed: int, quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed)))
    monkeypatch.setattr(machine, "cgroup_quota", lambda root: quota)

    assert machine.cpu_count() == expected


def child(code: str, *arguments: str, path: str = ROOT) -> str:
    """Return what a bare interpreter prints: no site-packages but `path`."""
    command = [sys.executable, "-S", "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system knows no affinity")
def test_a_process_held_to_one_processor_counts_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import runtime.machine as m"

    assert child(f"{code}; print(m.cpu_count())") == "1\n"


@pytest.mark.parametrize(
    ("wheels", "found"),
    [
        ([], []),
        (["onnxruntime"], ["onnxruntime"]),
        (["onnxruntime_gpu"], ["onnxruntime-gpu"]),
        (["onnxruntime_gpu", "onnxruntime"], ["onnxruntime", "onnxruntime-gpu"]),
        (["onnxruntime_openvino", "onnxruntime_extensions"], ["onnxruntime-openvino"]),
    ],
)
def test_installed_wheels_are_found_by_their_metadata(wheels: list[str], found: list[str], tmp_path: Path) -> None:
    for wheel in wheels:
        folder = tmp_path / f"{wheel}-1.31.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel.replace('_', '-')}\nVersion: 1.31.1\n")
        (tmp_path / "onnxruntime").mkdir(exist_ok=True)
    code = """import json
from runtime.errors import DependencyError
from runtime.machine import installed, onnxruntime_distributions
from runtime.providers import check_installation
wheels = onnxruntime_distributions()
try:
    verdict = check_installation(wheels, installed("onnxruntime"))
except DependencyError as error:
    verdict = str(error)
print(json.dumps([wheels, verdict]))"""

    names, verdict = json.loads(child(code, path=os.pathsep.join([str(tmp_path), ROOT])))

    assert names == found
    expected = {0: "is not installed", 2: "onnxruntime and onnxruntime-gpu are both installed"}.get(len(found))
    assert expected in verdict if expected else verdict is None


def test_of_wheels_in_folders_of_their_own_the_one_that_is_imported_counts(tmp_path: Path) -> None:
    for wheel in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / wheel / f"{wheel}-1.31.1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel.replace('_', '-')}\nVersion: 1.31.1\n")
        (tmp_path / wheel / "onnxruntime").mkdir()
        (tmp_path / wheel / "onnxruntime" / "__init__.py").touch()
    code = "from runtime.machine import onnxruntime_distributions as wheels; print(*wheels())"
    first = {
        names: child(code, path=os.pathsep.join([*(str(tmp_path / name) for name in names), ROOT]))
        for names in (("onnxruntime", "onnxruntime_gpu"), ("onnxruntime_gpu", "onnxruntime"))
    }

    assert list(first.values()) == ["onnxruntime\n", "onnxruntime-gpu\n"]


def test_a_library_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CUDNN", "libno-such-library.so.9")

    assert "libno-such-library.so.9" in str(machine.cudnn_obstacle())


def test_a_library_that_is_there_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    there = subprocess.run(
        [sys.executable, "-c", "import _ctypes; print(_ctypes.__file__)"], capture_output=True, text=True, check=True
    )
    monkeypatch.setattr(machine, "_CUDNN", there.stdout.strip())

    assert machine.cudnn_obstacle() is None


class Driver:
    """As libcuda answers for a machine with one GPU."""

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return flags

    def cuDeviceGet(self, number: Any, index: int) -> int:  # noqa: N802
        number._obj.value = 40 + index
        return 101 if index else 0

    def cuDeviceGetAttribute(self, answer: Any, attribute: int, number: Any) -> int:  # noqa: N802
        answer._obj.value = {75: 9, 76: 1}[attribute] if number.value == 40 else -1
        return 0


def test_the_compute_capability_is_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Driver())

    assert machine.gpu_capability(0) == (9, 1)
    assert machine.gpu_capability(1) is None


def test_without_a_driver_there_is_no_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_NVIDIA_DRIVER", "libno-such-driver.so.1")

    assert machine.gpu_capability(0) is None


def test_a_package_is_looked_up_without_being_imported() -> None:
    code = "import sys, runtime.machine as m; print(m.installed('wave'), 'wave' in sys.modules, m.installed('a.b'))"

    assert child(code) == "True False False\n"
