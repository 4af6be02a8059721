"""What is wrong with a machine, and how to mend it: pure decisions about its facts."""

from collections.abc import Callable

from runtime.doctor.facts import Facts
from runtime.doctor.store_checks import check_artifacts, check_folder, check_versions
from runtime.doctor.verdict import FAIL, PASS, WARN, Finding
from runtime.providers import CUDA, cause
from runtime.request import ON_FALLBACK

_GPU, _CPU = "pip install 'backbone-runtime[gpu]'", "pip install 'backbone-runtime[cpu]'"
_CUDA_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]', or a torch built for the same CUDA"


def examine(facts: Facts) -> list[Finding]:
    """Return every finding, in the order in which they are told."""
    return [finding for check in CHECKS for finding in check(facts)]


def check_host(facts: Facts) -> list[Finding]:
    """Tell the release, Python and the CPUs."""
    host = facts.host
    release = f"backbone-runtime {host.release}" if host.release else "backbone-runtime, not installed as a package"
    return [Finding(PASS, "host", f"{release}, {host.python}, {host.system}, {host.cpus} CPUs for this process")]


def check_settings(facts: Facts) -> list[Finding]:
    """Look at environment variables."""
    value = facts.host.on_fallback
    if value is None or value in ON_FALLBACK:
        return []
    allowed = " or ".join(ON_FALLBACK)
    return [Finding(FAIL, "settings", f"BACKBONE_ON_FALLBACK={value} is refused", f"set it to {allowed}, or unset it")]


def check_registry(facts: Facts) -> list[Finding]:
    """Look at the registered backbones, and at plugins that could not be imported."""
    found = [Finding(PASS, "registry", f"{facts.host.backbones} backbones are registered")]
    fix = "mend or uninstall that package; the other backbones are not affected"
    return found + [Finding(WARN, "registry", message, fix) for message in facts.host.broken_plugins]


def check_wheels(facts: Facts) -> list[Finding]:
    """Look at which onnxruntime is installed: exactly one wheel may be, and it must run."""
    wheels = ", ".join(f"{name} {version}" for name, version in facts.wheels.items())
    if len(facts.wheels) > 1:
        says = f"{wheels} are installed, and write the same folder: the CUDA provider may be gone"
        return [Finding(FAIL, "onnxruntime", says, f"pip uninstall -y {' '.join(facts.wheels)}, then {_GPU} or {_CPU}")]
    if facts.onnxruntime is None:
        return [Finding(WARN, "onnxruntime", "not installed: the onnx backend cannot serve", f"{_GPU} or {_CPU}")]
    if facts.onnxruntime.trouble:
        fix = f"pip uninstall -y {' '.join(facts.wheels) or 'onnxruntime'}, then {_GPU} or {_CPU}"
        return [Finding(FAIL, "onnxruntime", f"{wheels} does not run: {facts.onnxruntime.trouble}", fix)]
    return [Finding(PASS, "onnxruntime", f"{wheels or facts.onnxruntime.told['version']} runs")]


def check_driver(facts: Facts) -> list[Finding]:
    """Look at the NVIDIA driver and its GPUs. A machine without any is not ill."""
    if not facts.gpu.driver:
        return [Finding(PASS, "driver", "no NVIDIA driver here: everything runs on the CPU")]
    known = f"for CUDA {int(facts.gpu.version) // 1000}" if facts.gpu.version else "of an unknown version"
    if not facts.gpu.names:
        fix = "see nvidia-smi; in a container, start it with its GPUs (docker run --gpus all)"
        return [Finding(WARN, "driver", f"an NVIDIA driver {known} is here, and shows no GPU", fix)]
    return [Finding(PASS, "driver", f"an NVIDIA driver {known}, with {', '.join(facts.gpu.names)}")]


def check_cuda(facts: Facts) -> list[Finding]:
    """Look at whether onnxruntime's CUDA provider really runs, with cuBLAS and cuDNN; if not, in its own words."""
    ran = facts.onnxruntime
    if ran is None or ran.trouble:
        return []
    if CUDA not in ran.told["built_with"]:
        if not facts.gpu.names:
            return []
        fix = f"pip uninstall -y {' '.join(facts.wheels) or 'onnxruntime'}, then {_GPU}"
        return [Finding(WARN, "cuda", "this onnxruntime was built without CUDA: the GPU is not used", fix)]
    if ran.told["started"][0] == CUDA:
        return [Finding(PASS, "cuda", "the CUDA provider starts; a convolution and a matrix product ran on it")]
    said = f"the CUDA provider does not start: {cause(ran.messages)}"
    if facts.gpu.names:
        return [Finding(FAIL, "cuda", said, _CUDA_LIBRARIES)]
    return [Finding(PASS, "cuda", f"{said}. Without a GPU nobody misses it")]


def check_openvino(facts: Facts) -> list[Finding]:
    """Look at OpenVINO, and at the precisions this CPU has instructions for."""
    ran = facts.openvino
    if ran is None:
        says = "not installed: CPUs are served by onnxruntime (pip install 'backbone-runtime[openvino]' adds bf16)"
        return [Finding(PASS, "openvino", says)]
    if ran.trouble:
        fix = "pip install --force-reinstall openvino, or pip uninstall openvino"
        return [Finding(FAIL, "openvino", f"does not run: {ran.trouble}", fix)]
    known = [name for name in ("BF16", "INT8") if name in ran.told["capabilities"]]
    fast = f"has instructions for {' and '.join(known)}" if known else "has none for BF16 or INT8"
    return [Finding(PASS, "openvino", f"{ran.told['version']} runs; this CPU {fast}")]


def check_torch(facts: Facts) -> list[Finding]:
    """Look at torch and timm, which build, and serve where there is no artifact."""
    ran = facts.torch
    if ran is None:
        says = "not installed, nor needed to serve artifacts (pip install 'backbone-runtime[eager]' adds the fallback)"
        return [Finding(PASS, "torch", says)]
    if ran.trouble:
        fix = "install versions of torch, torchvision and timm that go together: pip install -U torch torchvision timm"
        return [Finding(FAIL, "torch", f"torch or timm cannot be imported: {ran.trouble}", fix)]
    versions = ", ".join(f"{name} {version}" for name, version in ran.told["versions"].items())
    built = f"built for CUDA {ran.told['built_for']}" if ran.told["built_for"] else "built for CPUs"
    if facts.gpu.names and not ran.told["cuda"]:
        fix = "install a torch whose CUDA this driver knows; see https://pytorch.org/get-started/locally"
        return [Finding(WARN, "torch", f"{versions}, {built}: it cannot use the GPU", fix)]
    return [Finding(PASS, "torch", f"{versions}, {built}")]


def check_any_backend(facts: Facts) -> list[Finding]:
    """Look at whether anything at all can serve."""
    runs = [ran for ran in (facts.onnxruntime, facts.openvino, facts.torch) if ran is not None and not ran.trouble]
    if runs:
        return []
    says = "no backend can serve here: none of onnxruntime, openvino and torch runs"
    return [Finding(FAIL, "backends", says, f"{_GPU} (serves on CPUs too) or {_CPU}")]


def check_extras(facts: Facts) -> list[Finding]:
    """Look at the optional extras: whole, in part or not there, and what is too old for them."""
    if not facts.extras:
        return []
    whole = [extra.name for extra in facts.extras if not extra.missing]
    parts = [f"{e.name} (lacks {', '.join(e.missing)})" for e in facts.extras if e.missing and e.present]
    absent = [extra.name for extra in facts.extras if extra.missing and not extra.present]
    groups = {"installed": whole, "in part": parts, "not installed": absent}
    says = "; ".join(f"{which}: {', '.join(names)}" for which, names in groups.items() if names)
    old: dict[str, list[str]] = {}
    for extra in facts.extras:
        for package in extra.outdated:
            old.setdefault(package, []).append(extra.name)
    return [Finding(PASS, "extras", says)] + [
        Finding(WARN, "extras", package, f"pip install --upgrade 'backbone-runtime[{','.join(names)}]'")
        for package, names in old.items()
    ]


def check_hub(facts: Facts) -> list[Finding]:
    """Look at the Hugging Face hub, which only downloads of weights and artifacts need."""
    hub = facts.hub
    if hub.offline:
        says = f"offline mode: nothing is asked of {hub.endpoint}, only what is cached is used"
        return [Finding(PASS, "hub", says)]
    if hub.status not in (200, 401, 403):
        why = hub.trouble or f"it answers with status {hub.status}"
        fix = "check the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT; what is built or cached is served all the same"
        return [Finding(WARN, "hub", f"{hub.endpoint} cannot be used: {why}", fix)]
    if not hub.token:
        fix = "for gated backbones: accept their terms, then hf auth login, or set HF_TOKEN"
        return [Finding(WARN, "hub", f"{hub.endpoint} answers; there is no token", fix)]
    if hub.status in (401, 403):
        fix = "hf auth login, or a valid HF_TOKEN; or unset it, for downloads that need none"
        return [Finding(FAIL, "hub", f"{hub.endpoint} refuses the token (status {hub.status})", fix)]
    return [Finding(PASS, "hub", f"{hub.endpoint} answers; the token is {hub.user or 'accepted'}'s")]


CHECKS: tuple[Callable[[Facts], list[Finding]], ...] = (
    check_host,
    check_settings,
    check_registry,
    check_any_backend,
    check_wheels,
    check_driver,
    check_cuda,
    check_openvino,
    check_torch,
    check_extras,
    check_folder,
    check_artifacts,
    check_versions,
    check_hub,
)
