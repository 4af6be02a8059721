"""Whether a CPU multiplies 8-bit numbers exactly. Standard library only."""

import re
from collections.abc import Collection
from pathlib import Path

# Any one of them adds products of 8-bit numbers up in 32 bits. x86 CPUs without add pairs of them in 16, and saturate.
EXACT = frozenset(("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"))


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return what Linux says an x86 CPU has; nothing where that is not known, or the CPU is another."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def saturates(flags: Collection[str]) -> bool:
    """Return whether a CPU with these flags is known to saturate when it multiplies 8-bit numbers."""
    return bool(flags) and not EXACT & set(flags)


def saturation(name: str) -> str:
    """Return the sentence that says so of a backbone served in int8."""
    return (
        f"{name} in int8: this CPU has none of VNNI, AMX and their like ({', '.join(sorted(EXACT))}), so sums of 8-bit "
        "products may saturate, and the numbers be worse than those that were verified. Look at them here with: "
        f"python -m exporters.verify {name}; or use precision='fp32'."
    )
