"""Building an entry of a torch.hub repository. torch is imported on call."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.builders import Adapt, as_module, created_for_real, unwrapped
from runtime.errors import OptionError, WeightsError
from runtime.facts import TorchHub

if TYPE_CHECKING:
    from torch import nn

    from runtime.weights import Weights


@dataclass(frozen=True, eq=False)
class TorchHubBuilder:
    """Calls an entry of a torch.hub repository: its code runs here."""

    name: str
    hub: TorchHub
    arguments: Mapping[str, Any]
    pretrained: str | None
    adapt: Adapt | None

    def __call__(self, weights: "Weights") -> "nn.Module":
        """Return the entry's module, with its own weights or the ones asked for."""
        from runtime.weights import PublishedWeights

        if isinstance(weights, PublishedWeights) and weights.source == self.hub:
            weights.revision = None if self.hub.local else self.hub.repository.partition(":")[2]
            return self._load(pretrained=True)
        return weights.construct(created_for_real(lambda: self._load(pretrained=False)), self.adapt or unwrapped)

    def _load(self, *, pretrained: bool) -> "nn.Module":
        import torch

        arguments = {**self.arguments, **({self.pretrained: pretrained} if self.pretrained else {})}
        try:
            load: Any = torch.hub.load
            made = load(self.hub.repository, self.hub.entry, **self._where(), **arguments)
        except TypeError as error:
            if f"unexpected keyword argument {self.pretrained!r}" not in str(error):
                raise
            raise OptionError(
                f"{self.name!r}: {self.hub} takes no {self.pretrained!r}: {error}. Pass pretrained=None to "
                "wrappers.torch_hub, or the name of the flag that it has for its weights."
            ) from error
        except (OSError, RuntimeError, ValueError) as error:  # what torch.hub raises for a missing repository or entry
            told = (str(error).splitlines() or [""])[0]
            raise WeightsError(
                f"{self.name!r}: torch.hub did not give {self.hub}: {type(error).__name__}: {told}. Check the "
                "repository, its ref and the entry; without a network it must be in the cache of torch.hub."
            ) from error
        return as_module(made, self.name, str(self.hub))

    def _where(self) -> dict[str, Any]:
        if self.hub.local:
            return {"source": "local"}
        # A whole commit hash names its content; torch.hub would look for it among heads and tags only.
        commit = re.fullmatch(r"[0-9a-f]{40}", self.hub.repository.partition(":")[2])
        return {"trust_repo": True, "verbose": False, "skip_validation": commit is not None}
