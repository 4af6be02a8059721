"""Building a vision model of the transformers library from its configuration. torch is imported on call."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.download import fetch
from runtime.errors import OptionError, RegistrationError, WeightsError
from runtime.facts import HubFile
from runtime.out_indices import canonical

if TYPE_CHECKING:
    from torch import nn

    from runtime.backbones.timm_vit import ImageSize
    from runtime.out_indices import OutIndices
    from runtime.weights import Weights

TransformersOutput = Literal["cls", "pooler"]
# Parts for training or for another task, which an embedding does not use.
_UNUSED = ("classifier.", "pooler.", "embeddings.mask_token")


@dataclass(frozen=True, eq=False)
class TransformersBuilder:
    """Builds the model that a `config.json` describes, by code of the installed transformers alone."""

    name: str
    model: str
    local: bool
    revision: str | None
    output: TransformersOutput
    arguments: Mapping[str, Any]

    def __call__(
        self, weights: "Weights", out_indices: "OutIndices" = None, image_size: "ImageSize" = 224
    ) -> "nn.Module":
        """Return the embedding [B, D], or feature maps [B, C, h, w]; the last block's has passed the final norm."""
        from runtime.transformers_outputs import HiddenMaps, Pooled

        if image_size == "dynamic":
            raise OptionError(
                f"image_size='dynamic': {self.name!r} takes a fixed size. Name one, such as image_size=224."
            )
        config = self._config()
        module: Any = weights.construct(lambda: self._create(config), self._adapt)
        patch = int(config.patch_size)
        if out_indices is None:
            return Pooled(module, self.output, patch)
        depth = config.num_hidden_layers
        wanted = canonical(out_indices, depth)
        assert wanted is not None
        return HiddenMaps(module, [depth + index for index in wanted], depth, patch)

    def _config(self) -> Any:
        """Return the configuration; never code of a repository."""
        from transformers import CONFIG_MAPPING

        path = self._config_file()
        declared: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = str(declared.get("model_type"))
        if kind not in CONFIG_MAPPING:
            own = "auto_map" in declared
            why = (
                "only code of its repository can build it, and remote code is never executed"
                if own
                else "the installed transformers does not know it"
            )
            raise RegistrationError(
                f"{self.name!r}: {self.model} is of model_type {kind!r}: {why}. Take a model that transformers "
                "ships, or register a function of your own that builds it."
            )
        return CONFIG_MAPPING[kind].from_dict({**declared, **self.arguments})

    def _config_file(self) -> Path:
        if self.local:
            return Path(self.model) / "config.json"
        try:
            path, _ = fetch(HubFile(self.model, ("config.json",), self.revision), self.name, gated=False)
        except WeightsError as error:
            why = str(error).replace(", or build with --weights random", "")  # which needs the configuration, too
            raise WeightsError(f"config.json says what to build, under random weights too. {why}") from error
        return path

    def _create(self, config: Any) -> "nn.Module":
        from transformers import AutoModel

        auto: Any = AutoModel
        try:
            module: Any = auto.from_config(config)
        except ValueError as error:
            raise RegistrationError(
                f"{self.name!r}: transformers has no plain model for {type(config).__name__}: {error}"
            ) from error
        if not hasattr(config, "patch_size") or module.main_input_name != "pixel_values":
            raise RegistrationError(
                f"{self.name!r}: {self.model} is a {type(module).__name__}, not a Vision Transformer: it takes "
                f"{module.main_input_name}. Register a function of your own that returns its image encoder."
            )
        if self.output == "cls" and getattr(module, "pooler", None) is not None:
            module.pooler = None  # not used, and often not in the checkpoint
        return module  # type: ignore[no-any-return]

    def _adapt(self, tensors: Any, module: Any) -> dict[str, Any]:
        """Return the published tensors under the installed transformers' keys, renamed by its own rules."""
        with _quiet():
            loaded, report = type(module).from_pretrained(
                None, config=module.config, state_dict=dict(tensors), output_loading_info=True, dtype="float32"
            )
        wanted = module.state_dict().keys() - report["missing_keys"]  # what is missing was drawn anew: not loaded
        unexpected = {key: tensors[key] for key in report["unexpected_keys"] if not key.startswith(_UNUSED)}
        return {key: tensor for key, tensor in loaded.state_dict().items() if key in wanted} | unexpected


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own report of a load off the terminal: what is wrong with it becomes an error."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except RuntimeError as error:  # shapes; with the report off the terminal
        raise WeightsError(f"The checkpoint does not fit the configuration: {error}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
