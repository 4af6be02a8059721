"""Looking at a machine: everything that is read, tried or asked, and nothing that is decided."""

import contextlib
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile

from packaging.requirements import Requirement

from runtime import registry
from runtime.doctor.facts import Extra, Facts, Gpu, Host, Hub
from runtime.doctor.probes import probe
from runtime.doctor.stored import look_at_store
from runtime.errors import PluginWarning
from runtime.hub import first_line
from runtime.machine import cpu_count, driver_version, gpu_name, installed, nvidia_driver, onnxruntime_distributions

DISTRIBUTION = "backbone-runtime"
# The extra that only who works on this project installs.
DEVELOPERS = "dev"
HUB_SECONDS = 10.0


def gather(artifacts: str | None, *, full: bool = False) -> Facts:
    """Return the facts of this machine; what is slow is looked at side by side.

    Args:
        artifacts: Folder of artifacts; `None` for the default.
        full: Hash every published file.
    """
    with ThreadPoolExecutor() as pool:
        probed = {name: pool.submit(probe, name) for name in ("onnxruntime", "torch", "openvino") if installed(name)}
        hub, host = pool.submit(look_at_hub), look_at_host()
        return Facts(
            host=host,
            gpu=look_at_gpu(),
            wheels={name: importlib.metadata.version(name) for name in onnxruntime_distributions()},
            extras=look_at_extras(),
            store=look_at_store(artifacts, full=full),
            hub=hub.result(),
            **{name: running.result() for name, running in probed.items()},
        )


def look_at_host() -> Host:
    """Return the machine, and which of the installed plugins could not be imported."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = registry.list_models()
    return Host(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.machine()}",
        cpus=cpu_count(),
        release=_release(),
        backbones=len(names),
        broken_plugins=tuple(str(w.message) for w in caught if issubclass(w.category, PluginWarning)),
        on_fallback=os.environ.get("BACKBONE_ON_FALLBACK") or None,
    )


def _release() -> str | None:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def look_at_gpu() -> Gpu:
    """Return what the NVIDIA driver tells."""
    if not nvidia_driver():
        return Gpu()
    names = takewhile(lambda name: name is not None, map(gpu_name, count()))
    return Gpu(True, driver_version(), tuple(str(name) for name in names))


def look_at_extras() -> tuple[Extra, ...]:
    """Return every extra of this package as installed here; none where the package itself is not installed."""
    try:
        about = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return ()
    required = [Requirement(line) for line in about.get_all("Requires-Dist") or ()]
    names = [name for name in about.get_all("Provides-Extra") or () if name != DEVELOPERS]
    return tuple(_extra(name, _brought_by(name, required)) for name in names)


def _brought_by(extra: str, required: Iterable[Requirement]) -> list[Requirement]:
    """Return what an extra installs, that of the extras which it names included."""
    found: list[Requirement] = []
    for requirement in required:
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name == DISTRIBUTION:
            found += [inner for name in requirement.extras for inner in _brought_by(name, required)]
        else:
            found.append(requirement)
    return found


def _extra(name: str, required: Iterable[Requirement]) -> Extra:
    present, missing, outdated = [], [], []
    for requirement in required:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        present.append(requirement.name)
        if not requirement.specifier.contains(version, prereleases=True):
            outdated.append(f"{requirement.name} {version} (wanted: {requirement.specifier})")
    return Extra(name, tuple(present), tuple(missing), tuple(outdated))


def look_at_hub() -> Hub:
    """Return what the Hugging Face hub answers when it is asked who we are; offline mode asks nothing."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    endpoint, token = constants.ENDPOINT, False
    try:
        token = get_token() is not None
        if constants.HF_HUB_OFFLINE:
            return Hub(endpoint, offline=True, token=token)
        url = f"{endpoint}/api/whoami-v2"
        answer = get_session().get(url, headers=build_hf_headers(), timeout=HUB_SECONDS)
    except Exception as error:  # what the HTTP client raises has changed from release to release
        return Hub(endpoint, token=token, trouble=f"{type(error).__name__}: {first_line(error)}")
    user = None
    with contextlib.suppress(ValueError, AttributeError):
        user = answer.json().get("name")
    return Hub(endpoint, token=token, status=answer.status_code, user=user)
