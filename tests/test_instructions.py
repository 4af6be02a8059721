"""Which CPUs saturate in int8, and that who serves it there is told."""

from pathlib import Path

import pytest

from runtime.instructions import cpu_flags, saturates


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx2", True),
        ("fpu sse2 avx2 avx512f avx512bw", True),
        ("fpu sse2 avx2 avx512f avx512_vnni", False),
        ("fpu sse2 avx2 avx_vnni", False),
        ("fpu amx_tile amx_int8", False),
        ("", False),
    ],
)
def test_an_x86_cpu_without_vnni_and_amx_saturates(flags: str, expected: bool) -> None:
    assert saturates(flags.split()) == expected


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nvmx flags\t: ept\nflags\t\t: fpu avx_vnni\n\nflags\t\t: fpu\n", {"fpu", "avx_vnni"}),
        ("processor\t: 0\nFeatures\t: fp asimd\n", set()),
        (None, set()),
    ],
    ids=["x86", "arm", "no such file"],
)
def test_the_flags_are_what_linux_says_of_an_x86_cpu(text: str | None, flags: set[str], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)

    assert cpu_flags(tmp_path / "cpuinfo") == flags
