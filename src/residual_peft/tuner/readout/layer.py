"""The paper's mode as a PEFT layer: gains on each unit's direct contribution to the readout."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...bases.exactness import check_exact
from ...errors import ResiDualError
from ...towers.anatomy import TowerAnatomy
from ...towers.taps import Capture, capture_of, install_taps, is_foreign, take_capture
from ..layer import GAINS, WAITS, ResiDualLayer, own_gains, same, without_rounding
from ..mixing import BASE, each_its_own, weighted_gains
from ..modes import ordinary, ordinary_tensors
from ..sharing import Loading, begin_loading, end_loading, note_sharing
from ..values import check_directions, check_gains, check_parts
from .gains import ReadoutState, Settings, StoredBasis, base_of, compose, coordinates_of, derive
from .head_space import HeadSpace

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


class ResiDualReadout(nn.Module, ResiDualLayer):
    """Stands where a tower's readout is computed, and adds what the gains change.

    The taps' capture travels with the final norm's output tensor, so that the forward keeps no
    state: any number of threads may share one model.

    Everything stays in float32 or better under `.to(torch.bfloat16)`; adapters with equal bases
    share their tensors.
    """

    adapter_layer_names = (GAINS,)
    other_param_names = (*BASIS, "adapter_settings", "adapter_counts", "adapter_states")

    def __init__(self, base_layer: nn.Module, anatomy: TowerAnatomy) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.residual_peft_gains = nn.ParameterDict()
        for name in BASIS:
            setattr(self, name, BufferDict(persistent=True))
        self.adapter_settings: dict[str, Settings] = {}
        self.adapter_counts: dict[str, tuple[int, ...]] = {}
        # derived from the above and the tower's weights; absent until the weights are there
        self.adapter_states: dict[str, ReadoutState] = {}
        # by id and device: states and their copies for replicas on other devices
        self._moved: dict[tuple[int, torch.device], tuple[ReadoutState, ReadoutState]] = {}
        self.anatomy = anatomy  # no module itself, so the tower is not registered twice
        self.key = uuid.uuid4().hex
        self.taps: list[RemovableHandle] = []
        self._tap()
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self._loading = Loading()
        self.register_load_state_dict_post_hook(_after_load)

    def _tap(self) -> None:
        self.taps = install_taps(self.anatomy, key=self.key if self.anatomy.by_thread else None)

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
            if name.startswith("forward_") and self._changes_something:
                raise ResiDualError(FORWARD_REFUSED.format(name)) from None
            return getattr(self.base_layer, name)

    @property
    def _changes_something(self) -> bool:
        active: Any = self.active_adapters
        return not self.disable_adapters and any(a in self.residual_peft_gains for a in active)

    @property
    def dtype(self) -> torch.dtype:
        """Of all that is kept and computed here: the base layer's, but at least float32."""
        return torch.promote_types(self._base_weight.dtype, torch.float32)

    @property
    def _base_weight(self) -> Tensor:
        # the base layer may be a whole module that pools, or a norm without parameters
        tower = self.anatomy.layers[0].output_projection.weight
        return next(self.base_layer.parameters(), tower)

    def update_layer(
        self,
        adapter_name: str,
        settings: Settings,
        counts: tuple[int, ...],
        basis: StoredBasis,
        gains: Tensor,
        *,
        save_basis: bool,
        ready: bool = True,
    ) -> None:
        """Put an adapter in, or give it another basis and gains.

        Args:
            adapter_name: its name.
            settings: what it adapts.
            counts: directions per unit.
            basis: its basis; where `ready` is False, only the shapes count until a file is loaded.
            gains: their initial value.
            save_basis: whether the basis belongs to the adapter's state.
            ready: whether the tensors hold values.
        """
        if not self.taps:
            self._tap()
        self.adapter_settings[adapter_name] = settings
        self.adapter_counts[adapter_name] = counts
        self.adapter_states.pop(adapter_name, None)
        device = self._base_weight.device
        for name, tensor in zip(BASIS, basis.tensors, strict=True):
            getattr(self, name).register_buffer(
                adapter_name, tensor.detach().to(device, self.dtype), persistent=save_basis
            )
        gains = gains.to(device, torch.float32)
        old: Any = self.residual_peft_gains.get(adapter_name)
        if old is not None and old.shape == gains.shape and old.device == gains.device:
            old.data.copy_(gains)  # an optimizer may hold it
        else:
            trainable = False if old is None else old.requires_grad
            self.residual_peft_gains[adapter_name] = nn.Parameter(gains, requires_grad=trainable)
        if ready:
            self.refresh(adapter_name)

    @ordinary_tensors()
    def refresh(self, adapter_name: str) -> None:
        """Derive what the forward needs from the stored basis and the tower's weights."""
        for name in BASIS:
            buffers = getattr(self, name)
            tensor = buffers[adapter_name].to(self._base_weight.device, self.dtype)
            tensor = ordinary(tensor)  # it may have been put in, not copied
            buffers._buffers[adapter_name] = self._shared(name, adapter_name, tensor)
        own_gains(self, adapter_name)
        self.adapter_states[adapter_name] = self._twin(adapter_name) or self._derived(adapter_name)

    def _derived(self, adapter_name: str) -> ReadoutState:
        settings = self.adapter_settings[adapter_name]
        counts = self.adapter_counts[adapter_name]
        space = HeadSpace(self.anatomy, settings.units)
        components, means = space.unpack(self.stored(adapter_name), counts)
        return derive(self.anatomy, settings, counts, components, means, space.factors, self.dtype)

    def state(self, adapter_name: str) -> ReadoutState:
        """What leads from a capture to y' for one adapter.

        Raises:
            ResiDualError: the adapter's weights were never loaded.
        """
        if adapter_name not in self.adapter_states and self._has_values(adapter_name):
            # transformers puts the tensors in without telling anyone
            self.check_values(adapter_name)
            self.refresh(adapter_name)
        if adapter_name not in self.adapter_states:
            raise ResiDualError(WAITS.format(adapter_name))
        return self.adapter_states[adapter_name]

    def _here(self, adapter_name: str) -> ReadoutState:
        """The state where this layer's gains are: a replica of the layer may be elsewhere."""
        state = self.state(adapter_name)
        device = self.residual_peft_gains[adapter_name].device
        if state.directions.device == device:
            return state
        known, moved = self._moved.get((id(state), device), (None, state))
        if known is not state:  # an id may be used again
            moved = state.map(lambda tensor: tensor.to(device))
            self._moved[id(state), device] = state, moved
        return moved

    def _replicate_for_data_parallel(self) -> "ResiDualReadout":
        """Let `nn.DataParallel` copy the layer, with states that are derived before it does.

        A replica has neither parameters nor a tower of its own to derive one from. It shares the
        states with this layer, and what `_here` has moved to its device: replicas are made anew for
        each batch.
        """
        for name in self.adapter_settings:
            if name not in self.adapter_states and self._has_values(name):
                self.refresh(name)
        live = {id(state) for state in self.adapter_states.values()}
        for key in [key for key in self._moved if key[0] not in live]:
            self._moved.pop(key, None)
        replica: ResiDualReadout = super()._replicate_for_data_parallel()
        return replica

    def _has_values(self, adapter_name: str) -> bool:
        tensors = [self.residual_peft_gains[adapter_name], *self.stored(adapter_name).tensors]
        return not any(t.is_meta for t in tensors) and all(
            bool(t.isfinite().all()) for t in tensors
        )

    def check_values(self, adapter_name: str, **given: Tensor) -> None:
        """Refuse an adapter whose numbers, or those `given` in place of them, are no adapter's.

        Raises:
            ResiDualError: as `values`.
        """
        what = f"the adapter {adapter_name!r}"
        settings, counts = self.adapter_settings[adapter_name], self.adapter_counts[adapter_name]
        check_gains(given.get(GAINS, self.residual_peft_gains[adapter_name]), what)
        tensors = (given.get(name, getattr(self, name)[adapter_name]) for name in BASIS)
        stored = StoredBasis(*tensors)
        for means in (stored.head_means, stored.means):
            check_parts(means, stored.eigenvalues, stored.total_variance, what)
        if settings.per_unit:
            return
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
        if names is not None and len(names) != len(y) and not elsewhere:
            raise ResiDualError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {len(y)} respectively."
            )
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
        last one counts if its token is what came in.

        Raises:
            ResiDualError: the base layer was called by itself.
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

    def check_one_basis(self, adapters: list[str]) -> None:
        """Refuse adapters whose gains do not mean the same: another basis, or other settings.

        Raises:
            ResiDualError: names the two.
        """
        for name in adapters:
            self.state(name)
            if not self._shares_basis(adapters[0], name):
                raise ResiDualError(
                    f"the adapters {adapters[0]!r} and {name!r} do not share one basis with the "
                    "same units, remainder, restore_mean and granularity, so that their gains mean "
                    "different things; fit both from the same basis (basis=), or activate both "
                    "with set_adapter([...])."
                )

    def combine(self, adapters: list[str], weights: list[float], adapter_name: str) -> None:
        """Put in an adapter whose gains are the weighted sum of others' over their one basis."""
        first, settings = adapters[0], self.adapter_settings[adapters[0]]
        gains = [self.residual_peft_gains[name] for name in adapters]
        self.update_layer(
            adapter_name,
            settings,
            self.adapter_counts[first],
            self.stored(first),
            weighted_gains(gains, weights, settings.neutral),
            save_basis=first not in getattr(self, BASIS[0])._non_persistent_buffers_set,
        )
        self.residual_peft_gains[adapter_name].requires_grad_(False)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see `MERGE_REFUSED`."""
        raise ResiDualError(MERGE_REFUSED)

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Take the taps off the tower and give the base layer back."""
        if merge:
            raise ResiDualError(MERGE_REFUSED)
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
        return StoredBasis(*(getattr(self, name)[adapter_name] for name in BASIS))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Readout mode changes no weight that LoRA could stand for."""
        return False

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move the adapter, but never round it: PEFT's own casts bases to the base's dtype."""
        if adapter_name not in self.residual_peft_gains:
            return
        device = self._base_weight.device if device is None else device
        gains = self.residual_peft_gains[adapter_name]
        if not gains.is_meta:
            gains.data = gains.data.to(device)
        state = self.adapter_states.get(adapter_name)
        if state is not None and state.directions.device != device:
            self.refresh(adapter_name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ResiDualReadout":
        """Let `.to()` move everything, but round nothing below float32, and keep sharing."""
        before, apply = self.dtype, without_rounding(fn)
        if recurse:
            for name, child in self.named_children():
                child._apply(fn if name == "base_layer" else apply)
            ready = list(self.adapter_states)
            moved = {id(s): s.map(apply) for s in self.adapter_states.values()}
            self.adapter_states = {n: moved[id(s)] for n, s in self.adapter_states.items()}
            if self.dtype != before:  # a float64 model wants more digits than were kept
                self.adapter_states.clear()  # all, or one would be taken for another's twin
                for name in ready:
                    self.refresh(name)
        self._moved.clear()
        return self

    def _shared(self, buffers: str, adapter_name: str, tensor: Tensor) -> Tensor:
        """Another adapter's tensor, where one holds the same values, or the given one."""
        for name, other in getattr(self, buffers).items():
            if name != adapter_name and name in self.adapter_states and same(other, tensor):
                return other
        return tensor

    def _twin(self, adapter_name: str) -> ReadoutState | None:
        """The state of another adapter with the same settings over the same tensors."""
        for name, state in self.adapter_states.items():
            if name != adapter_name and self._shares_basis(name, adapter_name):
                return state
        return None

    def _shares_basis(self, one: str, other: str) -> bool:
        """Say whether two adapters adapt the same in the same tensors."""
        pairs = zip(self.stored(one).tensors, self.stored(other).tensors, strict=True)
        return (
            self.adapter_settings[one] == self.adapter_settings[other]
            and self.adapter_counts[one] == self.adapter_counts[other]
            and all(mine is theirs for mine, theirs in pairs)
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_sharing(self, BASIS, destination, prefix)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._loading = begin_loading(self, BASIS, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __repr__(self) -> str:
        return f"residual_peft.{super().__repr__()}"


def _after_load(layer: ResiDualReadout, _: Any) -> None:
    """Derive anew what depends on the tensors that were just loaded."""
    loading, layer._loading = layer._loading, Loading()
    end_loading(layer, loading)
    changed = loading.gains | loading.bases
    for name in changed:
        layer.adapter_states.pop(name, None)
    for name in sorted(changed):
        if name not in loading.gains and not layer._has_values(name):
            continue  # its gains are still to come
        layer.check_values(name)
        layer.refresh(name)


def readouts(model: nn.Module) -> Iterator[ResiDualReadout]:
    """The ResiDual layers of a model."""
    yield from (module for module in model.modules() if isinstance(module, ResiDualReadout))
