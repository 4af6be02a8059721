"""A backbone that is measured: what is the same for all contenders."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from benchmarks import pictures
from benchmarks.contender import Contender, Runner
from runtime.facts import Preprocessing

FIDELITY_IMAGES = 4


@dataclass(frozen=True)
class Subject:
    """A backbone, and what is the same for all contenders.

    Attributes:
        model: Registry name.
        facts: How images are prepared.
        size: Height and width in pixels.
        weights: `random` or `pretrained`.
        artifacts: The store that it is served from.
        exact: Outputs in float64 for the images of the fidelity check.
        work: `parameters`, `flops`, `products`.
    """

    model: str
    facts: Preprocessing
    size: tuple[int, int]
    weights: str
    artifacts: str
    exact: list[NDArray[Any]]
    work: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (self.facts.channels, *self.size)

    def images(self, count: int) -> dict[str, NDArray[Any]]:
        """Return the same images as `float32` and as `uint8`."""
        return {**pictures.batch(self.facts, self.size, count)}


def yardstick(model: str, facts: Preprocessing, size: tuple[int, int], weights: str) -> tuple[list[NDArray[Any]], Any]:
    """Return float64's outputs for the images of the fidelity check, and the backbone's work.

    Raises:
        ContenderError: Eager torch cannot be had.
    """
    options = {"weights": weights, "device": "cpu", "image_shape": (facts.channels, *size)}
    runner = Runner(Contender("float64", model, options, way="float64"))
    try:
        _, exact = runner.run(pictures.batch(facts, size, FIDELITY_IMAGES)["float32"])
        return exact, {name: runner.about[name] for name in ("parameters", "flops", "products")}
    finally:
        runner.close()
