"""What the two modes do differently, behind one interface: everything else is said once.

`readout/mode.py` and `stream/mode.py` enter themselves into `MODES`.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..data.progress import Progress
from .layer import AdapterLayer
from .state import Settings

if TYPE_CHECKING:
    from .config import ResiDualConfig
    from .fitted import Trusted


class Adapter(NamedTuple):
    """One adapter in a model."""

    model: nn.Module  # the adapted one
    layers: Mapping[str, Any]  # those that it was put into, by path
    config: "ResiDualConfig"
    name: str


class Mode(ABC):
    """One way to put gains into a model."""

    name: ClassVar[str]
    one_place: ClassVar[bool]
    """Whether an adapter is one layer, which other classes of the same tower have elsewhere; its
    `target_modules` then follow from the model, and are no choice."""

    @abstractmethod
    def check_options(self, config: "ResiDualConfig") -> None:
        """Refuse options that contradict the mode."""

    @abstractmethod
    def prepare(self, config: "ResiDualConfig", model: nn.Module, trusted: "Trusted") -> None:
        """Write down what is adapted in a model, and check a saved adapter before it is touched.

        Such an adapter's `target_modules` are paths from here on, whatever its patterns said.
        """

    @abstractmethod
    def adapts(self, config: "ResiDualConfig", path: str, matched: Any) -> Any:
        """Say whether a module is adapted; `matched` is what PEFT finds by the patterns."""

    @abstractmethod
    def place(
        self, config: "ResiDualConfig", model: nn.Module, name: str, target: nn.Module, path: str
    ) -> AdapterLayer:
        """Put an adapter into a layer, made around `target` where there is none; give the layer."""

    @abstractmethod
    def fit(
        self, adapter: Adapter, batches: Iterable[Any], progress: Progress, across_processes: bool
    ) -> Any:
        """Fit the bases of an adapter from batches, and restart its gains."""

    def first_gains(self, config: "ResiDualConfig", settings: Settings, path: str = "") -> Tensor:
        """Those that a layer begins with, float32: neutral, or draws around that.

        Seeded, or as PEFT's methods draw where `init_weights=False`, by torch's own generator.
        """
        if not config.init_weights:
            return settings.gains.first(1.0)
        spread = 0.0 if config.gain_init == "ones" else 1.0
        own = 0 if self.one_place else zlib.crc32(path.encode())  # each layer draws its own
        return settings.gains.first(spread, config.seed + own)


MODES: dict[str, Mode] = {}


def mode_of(config: "ResiDualConfig") -> Mode:
    """The mode of a config."""
    return MODES[config.mode]
