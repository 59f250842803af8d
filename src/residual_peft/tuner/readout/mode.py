"""Readout mode: one layer where a tower's readout is computed."""

from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import _ExcludedModule
from torch import nn

from ...bases.basis import SpectralBasis
from ...data.progress import Progress
from ...errors import ResiDualError
from ...towers.registry import find_tower
from ..choice import check_nothing_inside
from ..config import ResiDualConfig
from ..fitted import Trusted
from ..gains import KINDS
from ..modes import MODES, Adapter, Mode
from .layer import ResiDualReadout, readouts
from .placement import check_saved, new_basis, place


class ReadoutMode(Mode):
    """Gains on each unit's direct contribution to the readout."""

    name = "readout"
    one_place = True

    def check_options(self, config: ResiDualConfig) -> None:
        """Refuse a mean that nobody knows."""
        if isinstance(config.target_modules, str):
            config.target_modules = [config.target_modules]
        no_basis = config.basis is None and config.fitted.basis_source is None
        if KINDS[config.granularity].whole and config.restore_mean and no_basis:
            raise ResiDualError(
                f"restore_mean=True with granularity={config.granularity!r} and no basis, so there "
                "is no mean to restore; set restore_mean=False, or name a fitted basis with basis=."
            )

    def prepare(self, config: ResiDualConfig, model: nn.Module, trusted: Trusted) -> None:
        """Find the tower, and write down where it computes its readout."""
        if isinstance(model, PeftModel):  # in which PEFT would not find it
            raise ResiDualError(
                "wanted the model itself, got a PeftModel around it: give get_peft_model its "
                "get_base_model(), or put another adapter beside the first with add_adapter."
            )
        given = config.target_modules
        try:
            anatomy = find_tower(model, config.side, config.readout or "own")
        except ResiDualError as error:
            if given is None:
                raise
            raise ResiDualError(
                f"target_modules={given} with mode='readout', which needs an "
                f"image tower that it knows: {error} To put gains into any Linears, set "
                "mode='stream'."
            ) from None
        path = anatomy.projection_path
        if given not in (None, [path]):
            if not config._awaits_weights:
                raise ResiDualError(
                    f"target_modules={given}: readout mode adapts the readout of "
                    f"{anatomy.architecture}, which is computed at {path!r}; leave it out, or set "
                    "mode='stream' to put gains into those modules."
                )
            # another class may hold the same tower elsewhere
            config.fitted.check_weights(anatomy, "the adapter", [])
        wanted = anatomy.readout.name
        for layer in readouts(model):
            there = layer.anatomy.readout.name
            if layer.anatomy.side == anatomy.side and there != wanted:
                raise ResiDualError(  # one would change what the other reads
                    f"wanted an adapter with readout={there!r} like those that the {anatomy.side} "
                    f"tower has, got readout={wanted!r}: one tower cannot have both. Load the base "
                    "model once more for it."
                )
        check_nothing_inside(config, anatomy, model)
        config.target_modules = [path]
        if config._awaits_weights:
            check_saved(config, anatomy, trusted)

    def adapts(self, config: ResiDualConfig, path: str, matched: Any) -> Any:
        """Only the readout; PEFT knows whether it is excluded."""
        excluded = isinstance(matched, _ExcludedModule)
        return matched if excluded else path in (config.target_modules or ())

    def place(
        self, config: ResiDualConfig, model: nn.Module, name: str, target: nn.Module, path: str
    ) -> ResiDualReadout:
        """Put an adapter at the readout."""
        anatomy = find_tower(model, config.side, config.readout or "own")
        # may refuse, so it comes before the first change to the model
        placement = place(config, anatomy)
        layer = target if isinstance(target, ResiDualReadout) else ResiDualReadout(target, anatomy)
        layer.put(name, placement)
        return layer

    def fit(
        self, adapter: Adapter, batches: Iterable[Any], progress: Progress, across_processes: bool
    ) -> SpectralBasis | None:
        """Fit one basis of all units, where any is needed."""
        config = adapter.config
        if not config.needs_basis:
            return None
        basis = SpectralBasis.fit(
            adapter.model,
            batches,
            config.units,
            config.most_components,
            progress,
            across_processes=across_processes,
            side=config.side,
            readout=config.readout,
        )
        return new_basis(next(iter(adapter.layers.values())), config, basis, adapter.name)


MODES[ReadoutMode.name] = ReadoutMode()
