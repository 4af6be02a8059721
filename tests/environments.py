"""Interpreters outside the checkout: fresh environments, and what child processes there run."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import uv

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "timm", "onnx", "transformers", "safetensors")

# Registers the tiny backbone of these tests as a plugin would that people install without torch.
PLUGIN = """
from runtime import LibraryInit, Preprocessing, Url, register_model

FACTS = dict(
    preprocessing=Preprocessing(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    source=Url("http://127.0.0.1:9/tiny.pth"),
    licence="Apache-2.0",
    depth=3,
    patch_size=8,
)


@register_model("test/tiny_vit", **FACTS)
def tiny_vit(weights, out_indices=None, image_size=32):
    import torch

    raise AssertionError(f"serving an artifact built the eager backbone, with torch {torch.__version__}")


@register_model("test/tiny_initial", **(FACTS | {"source": LibraryInit(seed=3)}))
def tiny_initial(weights, out_indices=None, image_size=32):
    return tiny_vit(weights, out_indices, image_size)
"""

SERVE = f"""
import json, sys
import numpy as np
import plugin
from runtime import load_model

options = dict(weights="random", artifacts=sys.argv[1], on_fallback="error", device="cpu")
images = np.load("images.npy")
embedding = load_model("test/tiny_vit", backend="onnx", **options)
maps = load_model("test/tiny_vit", out_indices=2, backend="auto", **options)
np.savez("served.npz", embedding(images), *maps(images))
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(dict(backends=[embedding.backend, maps.backend], device=embedding.device, heavy=heavy)))
"""

# What an interpreter sees in which none of these packages was ever installed.
BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
for name in {HEAVY}:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} is not blocked")
"""


@dataclass(frozen=True)
class Environment:
    """An interpreter, and the folder outside the checkout where it runs."""

    python: Path
    folder: Path

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "BACKBONE", "XDG"))}
        return subprocess.run(
            [self.python, "-W", "error", *arguments],
            cwd=self.folder,
            env=inherited | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def tell(self, code: str, *arguments: str, **variables: str) -> dict:
        """Return the JSON that `code` prints last."""
        result = self.run("-c", code, *arguments, **variables)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    def failure(self, call: str, **variables: str) -> tuple[str, str]:
        """Return class and message of what `call` raises."""
        code = f"""
import json, plugin
from runtime import load_model
try:
    {call}
    print(json.dumps(["nothing", "was raised"]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
        kind, message = self.tell(code, **variables)
        return kind, message


def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 3, 32, 32), dtype=np.float32)


def work_folder(folder: Path) -> Path:
    """Fill a folder with what the child processes import and read."""
    (folder / "plugin.py").write_text(PLUGIN)
    np.save(folder / "images.npy", images())
    return folder


def install(folder: Path, what: str) -> Environment:
    """Return a fresh environment that holds `what` alone, in the versions of this one."""
    python = folder / "environment" / "bin" / "python"
    tool = [uv.find_uv_bin()]
    subprocess.run([*tool, "venv", "--quiet", "--python", sys.executable, python.parent.parent], check=True)
    constraints = folder / "constraints.txt"
    pinned = (ROOT / ".ci" / "constraints.txt").read_text()
    constraints.write_text(f"{pinned}\nonnxruntime=={onnxruntime.__version__}\n")
    command = [*tool, "pip", "install", "--quiet", "--python", python, "--constraint", constraints, what]
    subprocess.run(command, check=True, timeout=300)
    return Environment(python, work_folder(folder))
