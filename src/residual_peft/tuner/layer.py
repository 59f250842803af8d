"""What the layers of both modes are: gains over frozen bases, never rounded, equal ones shared."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import ResiDualError
from .gains import GAINS
from .saved import check_values
from .sharing import Loading, begin_loading, note_sharing
from .state import AdapterState, Placement, ordinary, ordinary_tensors, same, without_rounding

WAITS = (
    "the adapter {!r} was made from a saved adapter's config and waits for the weights beside it; "
    "load both with PeftModel.from_pretrained, or start anew from config.fresh()."
)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A layer that adapters of one mode are put into, around the module whose output they change.

    By adapter it has gains, the tensors of a basis (`kinds`), settings, and a state that is derived
    from all of them and from the weights; no state until the weights of a saved adapter are there.

    Everything is float32 or, beside a float64 model, float64, and stays so under
    `.to(torch.bfloat16)`. Adapters with equal bases share their tensors and their state.
    """

    mode: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]  # names of the tensors of a basis, which are saved

    adapter_layer_names = (GAINS,)
    other_param_names: tuple[str, ...] = ("adapter_settings", "adapter_states")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.other_param_names = (*cls.kinds, *AdapterLayer.other_param_names)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.residual_peft_gains = nn.ParameterDict()
        for kind in self.kinds:
            setattr(self, kind, BufferDict(persistent=True))
        self.adapter_settings: dict[str, Any] = {}
        self.adapter_states: dict[str, Any] = {}
        # by id and device: states and their copies for replicas on other devices
        self._moved: dict[tuple[int, torch.device], tuple[Any, Any]] = {}
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self._loading = Loading()
        self.register_load_state_dict_post_hook(_after_load)

    @property
    @abstractmethod
    def reference(self) -> Tensor:
        """The base layer's tensor whose device and precision the adapters follow."""

    @abstractmethod
    def derive(self, adapter_name: str) -> AdapterState:
        """Derive an adapter's state from its basis and the weights."""

    @abstractmethod
    def check_tensors(self, settings: Any, tensors: Sequence[Tensor], what: str) -> None:
        """Refuse tensors of `kinds` that no basis has; the message begins with `what`."""

    @property
    def dtype(self) -> torch.dtype:
        """Of all that is kept, and of new gains: the base layer's, but at least float32."""
        return torch.promote_types(self.reference.dtype, torch.float32)

    def has(self, adapter_name: str) -> bool:
        """Whether the layer has this adapter."""
        return adapter_name in self.residual_peft_gains

    def tensors(self, adapter_name: str) -> list[Tensor]:
        """The tensors of an adapter's basis, in the order of `kinds`."""
        return [getattr(self, kind)[adapter_name] for kind in self.kinds]

    def saves_basis(self, adapter_name: str) -> bool:
        """Whether the basis belongs to the adapter's file."""
        return adapter_name not in getattr(self, self.kinds[0])._non_persistent_buffers_set

    def put(self, adapter_name: str, placement: Placement) -> None:
        """Put an adapter in, or give it another basis and gains."""
        self.adapter_settings[adapter_name] = placement.settings
        self.adapter_states.pop(adapter_name, None)
        device = self.reference.device
        for kind, tensor in zip(self.kinds, placement.tensors, strict=True):
            tensor = tensor.detach().to(device, self.dtype)
            buffers = getattr(self, kind)
            buffers.register_buffer(adapter_name, tensor, persistent=placement.save_basis)
        old: Any = self.residual_peft_gains[adapter_name] if self.has(adapter_name) else None
        gains = placement.gains.to(device, self.dtype if old is None else old.dtype)
        if old is not None and old.shape == gains.shape and old.device == gains.device:
            old.data.copy_(gains)  # an optimizer may hold it
        else:
            trainable = False if old is None else old.requires_grad
            self.residual_peft_gains[adapter_name] = nn.Parameter(gains, requires_grad=trainable)
        if placement.ready:
            self.refresh(adapter_name)

    @ordinary_tensors()
    def refresh(self, adapter_name: str) -> None:
        """Derive what the forward needs: another adapter's, where that has the same basis."""
        others = [name for name in self.adapter_states if name != adapter_name]
        for kind in self.kinds:
            buffers = getattr(self, kind)._buffers
            tensor = buffers[adapter_name].to(self.reference.device, self.dtype)
            tensor = ordinary(tensor)  # it may have been put in, not copied
            equal = (buffers[name] for name in others if same(buffers[name], tensor))
            buffers[adapter_name] = next(equal, tensor)
        gains = self.residual_peft_gains[adapter_name]
        if gains.is_inference():  # loaded by assignment
            gains = nn.Parameter(ordinary(gains), requires_grad=gains.requires_grad)
            self.residual_peft_gains[adapter_name] = gains
        twin = next((name for name in others if self.shares_basis(name, adapter_name)), None)
        self.adapter_states[adapter_name] = (
            self.derive(adapter_name) if twin is None else self.adapter_states[twin]
        )

    def state(self, adapter_name: str) -> Any:
        """What one adapter's forward needs; refused while its weights are not there."""
        if adapter_name not in self.adapter_states and self._has_values(adapter_name):
            # transformers puts the tensors in without telling anyone
            self.check_values(adapter_name)
            self.refresh(adapter_name)
        if adapter_name not in self.adapter_states:
            raise ResiDualError(WAITS.format(adapter_name))
        return self.adapter_states[adapter_name]

    def _here(self, adapter_name: str) -> Any:
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

    def _has_values(self, adapter_name: str) -> bool:
        tensors = [self.residual_peft_gains[adapter_name], *self.tensors(adapter_name)]
        return not any(t.is_meta for t in tensors) and all(
            bool(t.isfinite().all()) for t in tensors
        )

    def check_values(self, adapter_name: str, **given: Tensor) -> None:
        """Refuse an adapter whose numbers, or those `given` in place of them, are no adapter's."""
        what = f"the tensors of the adapter {adapter_name!r}"
        gains = given.get(GAINS, self.residual_peft_gains[adapter_name])
        check_values(gains.detach(), GAINS, what)
        tensors = [given.get(kind, getattr(self, kind)[adapter_name]) for kind in self.kinds]
        self.check_tensors(self.adapter_settings[adapter_name], tensors, what)

    def check_merge_allowed(self) -> None:
        """Refuse to merge, where the mode cannot."""

    def shares_basis(self, one: str, other: str) -> bool:
        """Say whether two adapters adapt the same in the same tensors."""
        pairs = zip(self.tensors(one), self.tensors(other), strict=True)
        same_settings: bool = self.adapter_settings[one] == self.adapter_settings[other]
        return same_settings and all(mine is theirs for mine, theirs in pairs)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move the adapter, but never round it: PEFT's own casts bases to the base's dtype."""
        if not self.has(adapter_name):
            return
        device = self.reference.device if device is None else device
        gains = self.residual_peft_gains[adapter_name]
        if not gains.is_meta:
            gains.data = gains.data.to(device)
        state = self.adapter_states.get(adapter_name)
        if state is not None and state.directions.device != device:
            self.refresh(adapter_name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdapterLayer":
        """Let `.to()` move everything, but round nothing below float32, and keep sharing."""
        before, apply = self.dtype, without_rounding(fn)
        if recurse:
            for name, child in self.named_children():
                child._apply(fn if name == "base_layer" else apply)
            ready = list(self.adapter_states)
            moved = {id(state): state.map(apply) for state in self.adapter_states.values()}
            self.adapter_states = {n: moved[id(s)] for n, s in self.adapter_states.items()}
            if self.dtype != before:  # a float64 model wants more digits than were kept
                self.adapter_states.clear()  # all, or one would be taken for another's twin
                for name in ready:
                    self.refresh(name)
        self._moved.clear()
        return self

    def _replicate_for_data_parallel(self) -> "AdapterLayer":
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
        replica: AdapterLayer = super()._replicate_for_data_parallel()
        return replica

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_sharing(self, destination, prefix)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._loading = begin_loading(self, state_dict, prefix)
        for name, own in self.residual_peft_gains.items():
            given = state_dict.get(f"{prefix}{GAINS}.{name}")
            if given is not None and given.shape != own.shape:  # torch's lines follow
                args[-1].append(
                    f"the state has {tuple(given.shape)} gains for the adapter '{name}', the model "
                    f"{tuple(own.shape)}: its basis is another. PeftModel.from_pretrained makes a "
                    "model that fits; or give this one that basis (basis=) or the same fit first."
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __repr__(self) -> str:
        return f"residual_peft.{super().__repr__()}"


def _after_load(layer: AdapterLayer, _: Any) -> None:
    """Derive anew what depends on the tensors that were just loaded."""
    loading, layer._loading = layer._loading, Loading()
    for kind, name, donor in loading.followers:
        tensors = getattr(layer, kind)._buffers
        tensors[name] = tensors[donor]
    changed = loading.gains | loading.bases
    for name in changed:
        layer.adapter_states.pop(name, None)
    for name in sorted(changed):
        if name not in loading.gains and not layer._has_values(name):
            continue  # its gains are still to come
        layer.check_values(name)
        layer.refresh(name)


def adapter_layers(model: nn.Module, adapter_name: str | None = None) -> Iterator[AdapterLayer]:
    """The layers of a model that adapters were put into; with a name, those that have that one."""
    for module in model.modules():
        if isinstance(module, AdapterLayer) and (adapter_name is None or module.has(adapter_name)):
            yield module
