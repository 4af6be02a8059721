"""Writing a model repository as Triton reads it: staged inside the model's folder, published by renames.

::

    <repository>/.lock                                                no folder: Triton passes over it
                 <name>/config.pbtxt
                        <version>/model.onnx/model.onnx               the graph
                                             weights.<hash>.data      as its manifest names it
                        .staging/                                     no number: Triton passes over it

Models of one repository share equal weight data by hard links, which onnxruntime reads (it refuses symbolic ones).
The store of artifacts is copied from, never linked to: onnx refuses a file that has a second link.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from exporters.serving.config import KEY, MODEL
from exporters.serving.parts import Part, Placed, kept, place, sync
from exporters.serving.signature import is_as_written, sign
from runtime.errors import RepositoryError

CONFIG = "config.pbtxt"
STAGING = ".staging"
LOCK = ".lock"


def publish(
    repository: Path, config: Any, parts: Sequence[Part], *, version: int = 1, overwrite: bool = False
) -> tuple[list[Placed], str]:
    """Write one version of a model and its configuration; return what became of each part, and of the configuration.

    The configuration is `written`, `kept` (it was this one) or `rewritten`.

    Raises:
        RepositoryError: The folder holds another model, this version from another build, or a configuration that was
            changed by hand; or it cannot be written.
        ArtifactCorruptError: A part is not what its manifest says.
    """
    folder = repository / config.name
    with _written(folder):
        repository.mkdir(parents=True, exist_ok=True)
        with FileLock(repository / LOCK):
            try:
                return _publish(folder, config, parts, version, overwrite)
            finally:
                shutil.rmtree(folder / STAGING, ignore_errors=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()  # Triton takes an empty folder for a broken model


def _publish(
    folder: Path, config: Any, parts: Sequence[Part], version: int, overwrite: bool
) -> tuple[list[Placed], str]:
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    foreign = None if _interrupted(folder, parts, version) else stranger(folder, config)
    if foreign and not overwrite:
        raise RepositoryError(foreign)
    if not overwrite:
        _require_as_written(folder / CONFIG)
    placed = None if foreign else kept(folder / str(version), parts)
    if placed is None:
        placed = _replace(folder, parts, version, overwrite)
    if foreign:
        _remove_others(folder, version)
    return placed, _write_config(folder, config)


def _interrupted(folder: Path, parts: Sequence[Part], version: int) -> bool:
    """Return whether a first run ended between the version and its configuration."""
    return [path.name for path in folder.iterdir()] == [str(version)] and kept(folder / str(version), parts) is not None


def stranger(folder: Path, config: Any) -> str | None:
    """Return why a folder is not one of this model, or `None`; an empty one is."""
    if not any(folder.iterdir()):
        return None
    advice = "Choose another name with --name, or replace everything in it with --overwrite."
    found = read_config(folder)
    if found is None or KEY not in found.parameters:
        return f"{folder} holds files that this command did not write. {advice}"
    if found.parameters[KEY] == config.parameters[KEY]:
        return None
    held, asked = (c.parameters["backbone.artifact"].string_value for c in (found, config))
    model, wanted = (c.parameters["backbone.model"].string_value for c in (found, config))
    return f"{folder} holds {model} ({held}), not {wanted} ({asked}). {advice}"


def read_config(folder: Path) -> Any | None:
    """Return the `ModelConfig` of a model's folder; `None` where there is none that can be read."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse((folder / CONFIG).read_text(encoding="utf-8"), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError):
        return None


def _replace(folder: Path, parts: Sequence[Part], version: int, overwrite: bool) -> list[Placed]:
    """Stage all parts, then put them in the version's place."""
    target = folder / str(version)
    if target.exists() and not overwrite:
        raise RepositoryError(
            f"{target} holds another build of this model, and a version that is served does not change under its "
            f"number. Add --version {version + 1} (Triton serves the newest), or replace it with --overwrite."
        )
    staged = folder / STAGING / "new" / MODEL
    staged.mkdir(parents=True)
    placed = [place(part, staged, target / MODEL) for part in parts]
    if target.exists():
        target.rename(folder / STAGING / "old")
    staged.parent.rename(target)
    return placed


def _remove_others(folder: Path, version: int) -> None:
    """Remove what belonged to the model that this one replaces."""
    for path in folder.iterdir():
        if path.name == str(version):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _require_as_written(config: Path) -> None:
    """Raise rather than throw away what somebody changed in a configuration by hand."""
    if config.exists() and not is_as_written(config.read_text(encoding="utf-8")):
        raise RepositoryError(
            f"{config} was changed by hand since this command wrote it, and is left as it is. Keep a copy, add "
            "--overwrite to have it written anew, and make the changes in it again; see --help for those that are "
            "options, too."
        )


def _write_config(folder: Path, config: Any) -> str:
    """Replace the configuration last: until then Triton goes on with the old one. Return what became of it."""
    from google.protobuf import text_format

    path, part = folder / CONFIG, folder / f"{CONFIG}.part"
    text, there = sign(text_format.MessageToString(config)), path.exists()
    if there and path.read_text(encoding="utf-8") == text:
        return "kept"
    part.write_text(text, encoding="utf-8")
    sync(part)
    part.replace(path)
    sync(folder)
    return "rewritten" if there else "written"


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        raise RepositoryError(
            f"{folder} cannot be written: {reason}{where}. Free space, mend the permissions, or name another folder "
            "with --repository."
        ) from error
