"""The paper's mode as a PEFT layer: gains on each unit's direct contribution to the readout."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...bases.exactness import check_exact
from ...errors import ResiDualError
from ...towers.anatomy import TowerAnatomy
from ...towers.captures import Capture, capture_of, take_capture
from ...towers.taps import install_taps, is_foreign
from ..layer import AdapterLayer
from ..mixing import BASE, check_one_each, each_its_own
from ..state import Placement
from ..values import check_directions, check_parts
from .head_space import HeadSpace
from .state import (
    ReadoutSettings,
    ReadoutState,
    StoredBasis,
    base_of,
    compose,
    coordinates_of,
    derive,
)

BASIS = tuple(f"residual_peft_{field.name}" for field in fields(StoredBasis))

MERGE_REFUSED = (
    "an adapter in readout mode cannot be merged: its gains act on what each unit contributes to "
    "the readout, given the unadapted model's final LayerNorm, which changed weights would change. "
    "Keep the adapter beside the model or take it off with unload(); mode='stream' merges."
)

FORWARD_REFUSED = (
    "the tower's {} goes past its readout, so that the adapter would not be seen: call the model, "
    "or turn the adapter off with disable_adapter()."
)


class ResiDualReadout(AdapterLayer):
    """Stands where a tower's readout is computed, and adds what the gains change.

    The taps' capture travels with the final norm's output tensor, so that the forward keeps no
    state: any number of threads may share one model.
    """

    mode = "readout"
    kinds = BASIS
    adapter_settings: dict[str, ReadoutSettings]
    adapter_states: dict[str, ReadoutState]

    def __init__(self, base_layer: nn.Module, anatomy: TowerAnatomy) -> None:
        super().__init__(base_layer)
        self.anatomy = anatomy  # no module itself, so the tower is not registered twice
        self.key = uuid.uuid4().hex
        self.taps: list[RemovableHandle] = []
        self._tap()

    def _tap(self) -> None:
        # where no tensor carries a capture to the readout, it is handed over by thread
        by_thread = self.anatomy.whole or self.anatomy.cuts_out
        self.taps = install_taps(self.anatomy, key=self.key if by_thread else None)

    def _untap(self) -> None:
        for tap in self.taps:
            tap.remove()
        self.taps = []

    def __getattr__(self, name: str) -> Any:
        """Where the layer stands for a whole tower, it also has the tower's attributes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            anatomy = self.__dict__.get("anatomy")  # not there yet while it is unpickled
            if anatomy is None or not anatomy.whole or name.startswith("__"):
                raise
            if name.startswith("forward_") and not self.disable_adapters:
                active: Any = self.active_adapters
                if any(map(self.has, active)):
                    raise ResiDualError(FORWARD_REFUSED.format(name)) from None
            return getattr(self.base_layer, name)

    @property
    def reference(self) -> Tensor:
        """A parameter of the base layer, which may be a module that pools, or of the tower."""
        tower = self.anatomy.layers[0].output_projection.weight
        return next(self.base_layer.parameters(), tower)

    def put(self, adapter_name: str, placement: Placement) -> None:
        """Put an adapter in, as `AdapterLayer` does; the first needs the taps."""
        if not self.taps:
            self._tap()
        super().put(adapter_name, placement)

    def derive(self, adapter_name: str) -> ReadoutState:
        """Derive what the forward needs from the stored basis and the tower's weights."""
        settings = self.adapter_settings[adapter_name]
        space = HeadSpace(self.anatomy, settings.units)
        components, means = space.unpack(self.stored(adapter_name), settings.counts)
        return derive(self.anatomy, settings, components, means, space.factors, self.dtype)

    def check_tensors(
        self, settings: ReadoutSettings, tensors: Sequence[Tensor], what: str
    ) -> None:
        """Refuse tensors that no basis has: see `values`."""
        stored, counts = StoredBasis(*tensors), list(settings.counts)
        for means in (stored.head_means, stored.means):
            check_parts(means, stored.eigenvalues, stored.total_variance, what)
        own = list(zip(settings.units, counts, stored.eigenvalues.split(counts), strict=True))
        for rows, inside in ((stored.head_components, True), (stored.components, False)):
            these = [unit for unit in own if (unit[0].kind == "head") == inside]
            parts = rows.split([count for _, count, _ in these])
            check_directions(
                [(str(u), part, e) for (u, _, e), part in zip(these, parts, strict=True)], what
            )

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """y' (B, d): the base layer's output and, for each active adapter, what its gains change.

        Where the base layer gives all tokens (B, T, d), only the readout token changes; of a tuple
        that it gives, only the first.

        `adapter_names` (one name per sample, "__base__" for none) is PEFT's, and comes before the
        active adapters.

        Raises:
            ResiDualError: the input did not come from the tapped tower, others' hooks change what
                no unit writes, an adapter's weights were never loaded, adapters that drop the
                remainder are active with others, or there are more or fewer `adapter_names` than
                samples.
        """
        names: list[str] | None = kwargs.pop("adapter_names", None)
        if self.anatomy.projection is None or self.anatomy.whole:
            take_capture(self.key)  # an earlier call's, that an error left behind
        output = self.base_layer(x, *args, **kwargs)
        y, *rest = output if isinstance(output, tuple) else (output,)
        chosen: Any = self.active_adapters if names is None else names
        used = [name for name in dict.fromkeys(chosen) if name in self.residual_peft_gains]
        elsewhere = not used and any(name != BASE for name in names or ())  # the other side's
        if names is not None and not elsewhere:
            check_one_each(names, len(y))
        readout = self.anatomy.readout
        if self.disable_adapters or not used or not readout.holds(y):
            take_capture(self.key)  # nobody else will
            return output
        capture = self.capture(x, y)
        tokens = y.detach()  # no gradient enters the backbone: y' is affine in the gains
        base = readout.read(tokens, capture.where, self.dtype)
        if capture.foreign or any(map(is_foreign, self._forward_pre_hooks.values())):
            with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
                check_exact(self.anatomy, capture, base)
        adapted = self._adapted(used, names, base, capture)
        if tokens.ndim < 3:
            adapted = adapted.to(y.dtype)
            return (adapted, *rest) if isinstance(output, tuple) else adapted
        return readout.write(tokens, base, adapted, capture.where)

    def _adapted(
        self, used: list[str], names: list[str] | None, base: Tensor, capture: Capture
    ) -> Tensor:
        """y' of the active adapters together, or of one adapter per sample."""
        with torch.autocast(base.device.type, enabled=False):
            if names is None:
                return self._together(used, base, capture)
            states = {name: self._here(name) for name in used}
            gains = {name: self.residual_peft_gains[name] for name in used}
            own = [name if name in gains else BASE for name in names]  # not the other side's
            return each_its_own(states, gains, own, base, capture)

    def capture(self, x: Tensor, y: Tensor) -> Capture:
        """What the taps saw in the forward pass that has just led from `x` to `y`.

        It travels with the final norm's output; where the readout is cut out of that, this thread's
        last one counts if its token is what came in. A base layer called by itself is refused.
        """
        last = take_capture(self.key)
        whole = self.anatomy.projection is None or self.anatomy.whole
        capture = capture_of(y if whole else x)
        if capture is None and last is not None:
            same = last.normed is not None and torch.equal(last.normed, x)
            capture = last if whole or same else None
        if capture is None or capture.stream is None:
            raise ResiDualError(
                f"{self.anatomy.projection_path} got an input that the final norm of the "
                f"{self.anatomy.side} tower did not just compute, so the contributions of its "
                "units are not known; call the model as a whole, or turn the adapter off with "
                "disable_adapter()."
            )
        return capture

    def _together(self, active: list[str], base: Tensor, capture: Capture) -> Tensor:
        """Add up what the active adapters change."""
        states = [self._here(name) for name in active]
        if len(states) > 1 and not all(state.settings.keep for state in states):
            raise ResiDualError(
                f"the adapters {active} are active together and at least one has remainder='drop', "
                "whose readout replaces the others'; activate one of them at a time."
            )
        result = base.to(states[0].directions.dtype)
        for name, state in zip(active, states, strict=True):
            coordinates = coordinates_of(state, capture)
            gains = self.residual_peft_gains[name]
            adapted = compose(state, base_of(state, base), coordinates, gains)
            result = adapted if len(active) == 1 else result + (adapted - base)
        return result

    def check_merge_allowed(self) -> None:
        """Refuse: see `MERGE_REFUSED`."""
        raise ResiDualError(MERGE_REFUSED)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse, as `check_merge_allowed`."""
        self.check_merge_allowed()

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Take the taps off the tower and give the base layer back."""
        if merge:
            self.check_merge_allowed()
        self._untap()
        base: nn.Module = self.base_layer
        return base

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; PEFT leaves the layer there, which without any needs no taps."""
        super().delete_adapter(adapter_name)
        if not self.adapter_settings:
            self._untap()

    def stored(self, adapter_name: str) -> StoredBasis:
        """The tensors of an adapter's basis."""
        return StoredBasis(*self.tensors(adapter_name))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Readout mode changes no weight that LoRA could stand for."""
        return False


def readouts(model: nn.Module) -> Iterator[ResiDualReadout]:
    """The layers of a model in readout mode."""
    yield from (module for module in model.modules() if isinstance(module, ResiDualReadout))
