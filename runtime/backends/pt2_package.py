"""What a compiled package asks of the machine that serves it. Standard library only, no torch."""

from dataclasses import dataclass

# Inside the archive: where torch looks for compiled code, and our own record.
CODE = "data/aotinductor/model/"
NEEDS = "needs.json"
# torch's names for what an x86 CPU has, each with all before it.
X86 = ("DEFAULT", "AVX2", "AVX512")


@dataclass(frozen=True)
class Machine:
    """A machine, as far as compiled code depends on it: the one that a package needs, or the one at hand.

    Attributes:
        device: `cpu` or `cuda`.
        system: Operating system and architecture, such as `Linux x86_64`.
        instructions: Instruction set of the CPU, in torch's words, such as `AVX2`.
        gpu: Compute capability of the GPU, such as `9.0`; empty for the CPU.
        torch: Version of torch.
    """

    device: str
    system: str
    instructions: str
    gpu: str
    torch: str


def obstacle(needed: Machine, here: Machine) -> str | None:
    """Return why code compiled for `needed` cannot run `here`; `None` if it can. The version of torch may differ."""
    for what in ("device", "system", "gpu"):
        if getattr(needed, what) != getattr(here, what):
            return f"it was compiled for {getattr(needed, what) or 'no GPU'}, this is {getattr(here, what) or 'no GPU'}"
    enough = X86[X86.index(needed.instructions) :] if needed.instructions in X86 else (needed.instructions,)
    if here.instructions not in enough:
        return f"it needs a CPU with {needed.instructions}, this one has {here.instructions}"
    return None
