"""Stream mode: a layer around each adapted Linear."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...bases.fingerprint import digest_of_tensors
from ...data.progress import Progress
from ...errors import ResiDualError
from ...towers.registry import base_model
from ..config import ResiDualConfig
from ..fitted import Fitted, Trusted
from ..gains import KINDS
from ..modes import MODES, Adapter, Mode
from .basis import LinearBasis, collect_moments, data_basis
from .layer import ResiDualStreamLinear
from .linears import check_linear, heads_of, in_chosen_layers, tower_targets
from .placement import asked_components, basis_of, begin, check_saved, put
from .tensors import StreamSettings, shapes_for, tensors_of


class StreamMode(Mode):
    """Gains in the weights of attention output projections, MLPs' last Linears, or any Linear."""

    name = "stream"
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

    def prepare(self, config: ResiDualConfig, model: nn.Module, trusted: Trusted) -> None:
        """Find the tower's Linears where none are named."""
        if config.target_modules is None:
            config.target_modules = tower_targets(config, model)
        (check_saved if config._awaits_weights else begin)(config, model, trusted)

    def adapts(self, config: ResiDualConfig, path: str, matched: Any) -> Any:
        """What PEFT finds, in the chosen layers."""
        return matched if not matched or in_chosen_layers(config, path) else False

    def place(
        self, config: ResiDualConfig, model: nn.Module, name: str, target: nn.Module, path: str
    ) -> ResiDualStreamLinear:
        """Put an adapter around a Linear."""
        if isinstance(target, ResiDualStreamLinear):
            layer = target
        else:
            check_linear(target, path, model)
            layer = ResiDualStreamLinear(target)
        saved = tuple(config.fitted.component_counts[path]) if config._awaits_weights else None
        if saved is not None and config.save_basis:
            settings = StreamSettings(saved, config.granularity)
            shapes = shapes_for(saved, layer.out_features, layer.in_features)
            # NaN, so that a tensor that the file leaves out is seen
            room = [torch.full(shape, float("nan"), device="cpu") for shape in shapes]
            put(config, layer, name, path, settings, room)
            return layer
        heads = heads_of(model, path) if saved is None else len(saved)
        asked = asked_components(config, model, path, heads)
        settings, tensors = basis_of(config, layer, name, path, asked)
        if saved not in (None, settings.counts):
            found = "weights give" if config.basis is None else f"one from {config.basis!r} has"
            raise ResiDualError(
                f"the adapter's gains belong to a basis of {sum(saved or ())} components at "
                f"{path}, and the {found} {sum(settings.counts)}: it is another one."
            )
        put(config, layer, name, path, settings, tensors)
        return layer

    def fit(
        self, adapter: Adapter, batches: Iterable[Any], progress: Progress, across_processes: bool
    ) -> dict[str, LinearBasis]:
        """Fit the basis of every adapted Linear."""
        config, name, side = adapter.config, adapter.name, adapter.config.side
        readers = {}
        for path, layer in adapter.layers.items():
            if layer.merged:
                raise ResiDualError(
                    f"the adapters {layer.merged_adapters} are merged into {path}, and bases are "
                    "those of the unadapted model: call unmerge_adapter() first."
                )
            readers[path] = layer.linear, len(layer.adapter_settings[name].counts)
        moments, count = collect_moments(
            adapter.model, readers, batches, progress, across_processes=across_processes, side=side
        )
        model = base_model(adapter.model)
        # all are read out before the first is put in: a refusal leaves the adapter as it was
        found = {
            path: data_basis(module, moments[path]).truncate(
                asked_components(config, model, path, heads)
            )
            for path, (module, heads) in readers.items()
        }
        weights = config.fitted.fingerprint
        config.fitted = Fitted({}, weights, basis_source="data", num_samples=count)
        config.basis = None  # the one it named is replaced
        config._awaits_weights = False  # transformers has put some in and told nobody
        tensors = {}
        for path, basis in found.items():
            layer = adapter.layers[path]
            settings = StreamSettings(tuple(basis.component_counts), config.granularity)
            put(config, layer, name, path, settings, tensors_of(basis, layer.unmerged_weight))
            tensors[path] = layer.tensors(name)
        config.fitted = replace(config.fitted, basis_digest=digest_of_tensors(tensors))
        return found


MODES[StreamMode.name] = StreamMode()
