"""Stream mode: a layer around each adapted Linear."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ...data.progress import Progress
from ...errors import ResiDualError
from ..config import ResiDualConfig
from ..gains import KINDS
from ..modes import MODES, Mode
from .basis import LinearBasis
from .fitting import fit_stream
from .layer import ResiDualStreamLinear
from .linears import in_chosen_layers, tower_targets
from .placement import begin, check_saved, place_stream


class StreamMode(Mode):
    """Gains in the weights of attention output projections, MLPs' last Linears, or any Linear."""

    name = "stream"
    layer = ResiDualStreamLinear
    one_place = False

    def check_options(self, config: ResiDualConfig) -> None:
        """Refuse what only the readout has: weights can be scaled around a mean, not replaced."""
        only = {"embed", "pooler", "output"} & set(config.units)
        refused: tuple[tuple[str, bool, str], ...] = (
            ("remainder", config.remainder == "drop", "'keep'"),
            ("restore_mean", not config.restore_mean, "True"),
            ("units", bool(only), "'head' and 'mlp'"),
            ("readout", config.readout is not None, "None: all tokens change, whatever is read"),
            ("granularity", not KINDS[config.granularity].scales, "gains that scale"),
        )
        for name, wrong, wanted in refused:
            if wrong:
                raise ResiDualError(
                    f"{name}={getattr(config, name)!r} with mode='stream', which changes weights "
                    f"and leaves the rest as it is; wanted {wanted}. Or use mode='readout'."
                )

    def prepare(
        self, config: ResiDualConfig, model: nn.Module, trusted: list[dict[str, Any]]
    ) -> None:
        """Find the tower's Linears where none are named."""
        if config.target_modules is None:
            config.target_modules = tower_targets(config, model)
        (check_saved if config._awaits_weights else begin)(config, model, trusted)

    def adapts(self, config: ResiDualConfig, path: str, found: Any) -> Any:
        """What PEFT finds, in the chosen layers."""
        return found if not found or in_chosen_layers(config, path) else False

    def adapted_when_saved(self, config: ResiDualConfig) -> Iterable[str]:
        """The Linears that it has directions of."""
        counts: dict[str, list[int]] = config.fitted.component_counts
        return counts

    def place(
        self,
        config: ResiDualConfig,
        model: nn.Module,
        adapter_name: str,
        target: nn.Module,
        path: str,
        trusted: list[dict[str, Any]],
    ) -> ResiDualStreamLinear:
        """Put an adapter around a Linear."""
        return place_stream(config, model, adapter_name, target, path)

    def fit(
        self,
        peft_model: nn.Module,
        layers: Mapping[str, ResiDualStreamLinear],
        config: ResiDualConfig,
        batches: Iterable[Any],
        adapter_name: str,
        progress: Progress,
        *,
        across_processes: bool,
    ) -> dict[str, LinearBasis]:
        """Fit the basis of every adapted Linear."""
        return fit_stream(
            peft_model,
            layers,
            config,
            batches,
            adapter_name,
            progress,
            across_processes=across_processes,
        )

    def seed(self, config: ResiDualConfig, path: str) -> int:
        """Each layer draws its own."""
        return config.seed + zlib.crc32(path.encode())


MODES[StreamMode.name] = StreamMode()
