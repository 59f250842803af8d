"""What adapters in stream mode keep on a Linear, and how it is moved, shared and loaded."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...bases.spectra import UnitBasis
from ...errors import ResiDualError
from ...towers.registry import unwrapped
from ..layer import GAINS, WAITS, ResiDualLayer, own_gains, same, without_rounding
from ..modes import ordinary, ordinary_tensors
from ..sharing import Loading, begin_loading, end_loading, note_sharing
from ..values import check_gains
from .basis import LinearBasis
from .linears import linear_weight
from .tensors import DERIVED, STREAM_BASIS, StreamSettings, check_tensors, derive


class StreamLayer(nn.Module, ResiDualLayer):
    """What adapters in stream mode keep around a Linear: gains, and bases that are never rounded.

    All stays in float32 or better under `.to(torch.bfloat16)`; adapters with equal bases share
    their tensors. What is saved is small; the rest (`DERIVED`) follows from it and the base weight,
    and is kept so that it does not depend on what is merged.
    """

    residual_peft_directions: BufferDict
    residual_peft_components: BufferDict
    residual_peft_maps: BufferDict
    residual_peft_order: BufferDict
    residual_peft_input_mean: BufferDict

    adapter_layer_names = (GAINS,)
    other_param_names = (*STREAM_BASIS, *DERIVED, "adapter_settings", "adapter_waits")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.residual_peft_gains = nn.ParameterDict()
        for name in STREAM_BASIS:
            setattr(self, name, BufferDict(persistent=True))
        for name in DERIVED:
            setattr(self, name, BufferDict(persistent=False))
        self.adapter_settings: dict[str, StreamSettings] = {}
        self.adapter_waits: dict[str, bool] = {}  # those whose weights were not loaded yet
        self.out_features, self.in_features = linear_weight(self.linear).shape
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.unmerged: tuple[Tensor, Tensor | None] | None = None
        self.cast_input_dtype_enabled = True  # PEFT's disable_input_dtype_casting looks for it
        self._loading = Loading()
        self.register_load_state_dict_post_hook(_after_load)

    @property
    def linear(self) -> Any:
        """The base layer, however many adapters' layers are around it."""
        return unwrapped(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of all that is kept beside the gains: the base layer's, but at least float32."""
        return torch.promote_types(self.linear.weight.dtype, torch.float32)

    @property
    def unmerged_weight(self) -> Tensor:
        """The base layer's weight (D, n), without what is merged into it."""
        if self.unmerged is None:
            return linear_weight(self.linear)
        weight = self.unmerged[0]
        return weight.T if isinstance(self.linear, Conv1D) else weight

    def update_layer(
        self,
        adapter_name: str,
        settings: StreamSettings,
        tensors: Sequence[Tensor],
        gains: Tensor,
        *,
        save_basis: bool,
        ready: bool = True,
    ) -> None:
        """Put an adapter in, or give it another basis and gains.

        Args:
            adapter_name: its name.
            settings: what it does.
            tensors: those of `STREAM_BASIS`, as `tensors_of` gives them.
            gains: their initial value.
            save_basis: whether the basis belongs to the adapter's state.
            ready: whether the tensors hold values, or only their shapes until a file is loaded.
        """
        self.adapter_waits.pop(adapter_name, None)
        if not ready:
            self.adapter_waits[adapter_name] = True
        weight = self.linear.weight
        self.adapter_settings[adapter_name] = settings
        for name, tensor in zip(STREAM_BASIS, tensors, strict=True):
            tensor = tensor.detach().to(weight.device, self.dtype)
            getattr(self, name).register_buffer(adapter_name, tensor, persistent=save_basis)
        self.refresh(adapter_name)
        gains = gains.to(weight.device, weight.dtype)
        old: Any = self.residual_peft_gains[adapter_name] if self.has(adapter_name) else None
        if old is not None and old.shape == gains.shape and old.device == gains.device:
            old.data.copy_(gains)  # an optimizer may hold it
        else:
            trainable = False if old is None else old.requires_grad
            self.residual_peft_gains[adapter_name] = nn.Parameter(gains, requires_grad=trainable)

    def has(self, adapter_name: str) -> bool:
        """Whether the layer has this adapter."""
        return adapter_name in self.residual_peft_gains

    def check_ready(self, adapter_name: str) -> None:
        """Refuse an adapter without its weights.

        Raises:
            ResiDualError: they were never loaded.
        """
        if adapter_name not in self.adapter_waits:
            return
        gains = self.residual_peft_gains[adapter_name]
        if not all(_is_loaded(tensor) for tensor in (gains, *self.tensors(adapter_name))):
            raise ResiDualError(WAITS.format(adapter_name))
        # transformers' own load_adapter fills the tensors without load_state_dict
        own_gains(self, adapter_name)
        self.check_values(adapter_name)
        self.refresh(adapter_name)
        self.adapter_waits.pop(adapter_name, None)

    def check_values(self, adapter_name: str, **given: Tensor) -> None:
        """Refuse an adapter whose numbers, or those `given` in place of them, are no adapter's.

        Raises:
            ResiDualError: as `values`.
        """
        what = f"the adapter {adapter_name!r}"
        check_gains(given.get(GAINS, self.residual_peft_gains[adapter_name]), what)
        tensors = [given.get(name, getattr(self, name)[adapter_name]) for name in STREAM_BASIS]
        check_tensors(tensors, self.adapter_settings[adapter_name].counts, what)

    @ordinary_tensors()
    def refresh(self, adapter_name: str) -> None:
        """Derive what follows from an adapter's basis: another one's, where it has the same."""
        for name in STREAM_BASIS:
            buffers = getattr(self, name)._buffers
            buffers[adapter_name] = ordinary(buffers[adapter_name])
        self._share(adapter_name, STREAM_BASIS)
        directions = getattr(self, STREAM_BASIS[0])
        counts = self.adapter_settings[adapter_name].counts
        for other, tensor in directions.items():
            known = other in getattr(self, DERIVED[0]) and other != adapter_name
            same_counts = self.adapter_settings[other].counts == counts
            if known and same_counts and tensor is directions[adapter_name]:
                found: Sequence[Tensor] = [getattr(self, name)[other] for name in DERIVED]
                break
        else:
            found = derive(directions[adapter_name], self.unmerged_weight, counts)
        for name, tensor in zip(DERIVED, found, strict=True):
            getattr(self, name)[adapter_name] = tensor

    def _share(self, adapter_name: str, names: Sequence[str]) -> None:
        """Let an adapter refer to the tensors of another one that holds the same values."""
        for name in names:
            buffers = getattr(self, name)._buffers
            for other, tensor in buffers.items():
                if other != adapter_name and same(tensor, buffers[adapter_name]):
                    buffers[adapter_name] = tensor
                    break

    def tensors(self, adapter_name: str) -> list[Tensor]:
        """The tensors of an adapter's basis, in the order of `STREAM_BASIS`."""
        return [getattr(self, name)[adapter_name] for name in STREAM_BASIS]

    def basis(self, adapter_name: str) -> LinearBasis:
        """The basis that an adapter holds; means are those of the unmerged layer."""
        _, mean, eigenvalues, total = self.tensors(adapter_name)
        components = self.residual_peft_components[adapter_name]
        counts = list(self.adapter_settings[adapter_name].counts)
        bias = self.linear.bias if self.unmerged is None else self.unmerged[1]
        parts = self.unmerged_weight.detach().to(mean).unflatten(1, (len(counts), -1))
        means = torch.einsum("dhe,he->hd", parts, mean.view(len(counts), -1))
        if bias is not None:
            means = means + bias.detach().to(mean) / len(counts)
        found = zip(means, components.split(counts), eigenvalues.split(counts), total, strict=True)
        return LinearBasis(tuple(UnitBasis(*parts) for parts in found), mean)

    def change(self, adapter_name: str) -> Tensor:
        """λ − 1 of every component (K,), in the dtype of the basis; differentiable.

        Raises:
            ResiDualError: the adapter's weights were never loaded.
        """
        self.check_ready(adapter_name)
        settings = self.adapter_settings[adapter_name]
        gains = self.residual_peft_gains[adapter_name].to(
            self.residual_peft_components[adapter_name].dtype
        )
        if settings.per_unit:
            head = self.residual_peft_order[adapter_name] // max(settings.counts)
            gains = gains.index_select(0, head)
        return gains - 1

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move the adapter, but never round it: PEFT's own casts bases to the base's dtype."""
        if not self.has(adapter_name):
            return
        device = self.linear.weight.device if device is None else device
        gains = self.residual_peft_gains[adapter_name]
        if not gains.is_meta:
            gains.data = gains.data.to(device)
        for name in (*STREAM_BASIS, *DERIVED):
            buffers = getattr(self, name)._buffers
            buffers[adapter_name] = buffers[adapter_name].to(device)
        self._share(adapter_name, (*STREAM_BASIS, *DERIVED))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StreamLayer":
        """Let `.to()` move everything, but round nothing below float32, and keep sharing."""
        apply = without_rounding(fn)
        if recurse:
            for name, child in self.named_children():
                child._apply(fn if name == "base_layer" else apply)
            if self.unmerged is not None:
                weight, bias = self.unmerged
                self.unmerged = fn(weight), None if bias is None else fn(bias)
        return self

    def _replicate_for_data_parallel(self) -> "StreamLayer":
        """Let `nn.DataParallel` copy the layer: what a replica derives late is not this layer's."""
        replica: StreamLayer = super()._replicate_for_data_parallel()
        replica.adapter_waits = dict(self.adapter_waits)
        return replica

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_sharing(self, STREAM_BASIS, destination, prefix)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._loading = begin_loading(self, STREAM_BASIS, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_loaded(tensor: Tensor) -> bool:
    return not tensor.is_meta and bool(tensor.isfinite().all())


def _after_load(layer: StreamLayer, _: Any) -> None:
    """Derive anew what depends on the tensors that were just loaded."""
    loading, layer._loading = layer._loading, Loading()
    end_loading(layer, loading)
    for name in loading.bases:
        layer.adapter_waits[name] = True  # until it has been looked at
        for kind in DERIVED:  # or one that is refreshed first would take another's old ones
            getattr(layer, kind)._buffers.pop(name, None)
    for name in sorted(loading.gains | loading.bases):
        if name in loading.gains:
            own_gains(layer, name)
            layer.check_values(name)
            layer.adapter_waits.pop(name, None)
        if name in loading.bases:
            layer.refresh(name)
