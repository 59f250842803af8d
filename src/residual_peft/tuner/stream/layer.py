"""Stream mode as a PEFT layer: gains written into a Linear's weights, which they can merge into."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...bases.spectra import UnitBasis
from ...errors import ResiDualError
from ...towers.anatomy import unwrapped
from ..layer import AdapterLayer
from ..mixing import BASE, check_one_each
from .basis import LinearBasis
from .linears import linear_weight
from .tensors import STREAM_BASIS, StreamSettings, StreamState, check_tensors, derive


# "Linear" in the class's name is how PEFT knows it again for target_modules="all-linear"
class ResiDualStreamLinear(AdapterLayer):
    """Stands around a Linear (D, n), and adds what the gains change to its output.

    With Φ_h (k_h, D) the directions of head h, A_h = Φ_h W_h kept beside them, z_h (e,) its part of
    the input and z̄_h the mean of that (`method.md`, section 5; the bias drops out of a_h − μ_h):

        Δy = Σ_h Φ_hᵀ diag(λ_h − 1) A_h (z_h − z̄_h)

    which is ΔW = Σ_h Φ_hᵀ diag(λ_h − 1) A_h on its columns and Δb = −ΔW z̄. Since A is kept and
    not computed from the weight, the change does not depend on what is merged at the moment. While
    adapters are merged, the unmerged weight is kept too, so that unmerging loses no digit.

    The forward keeps no state.
    """

    mode = "stream"
    kinds = STREAM_BASIS
    adapter_settings: dict[str, StreamSettings]
    adapter_states: dict[str, StreamState]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.out_features, self.in_features = linear_weight(self.linear).shape
        self.unmerged: tuple[Tensor, Tensor | None] | None = None
        self.cast_input_dtype_enabled = True  # PEFT's disable_input_dtype_casting looks for it

    @property
    def linear(self) -> Any:
        """The base layer, however many adapters' layers are around it."""
        return unwrapped(self)

    @property
    def reference(self) -> Tensor:
        """The base layer's weight."""
        weight: Tensor = self.linear.weight
        return weight

    @property
    def unmerged_weight(self) -> Tensor:
        """The base layer's weight (D, n), without what is merged into it."""
        if self.unmerged is None:
            return linear_weight(self.linear)
        weight = self.unmerged[0]
        return weight.T if isinstance(self.linear, Conv1D) else weight

    def derive(self, adapter_name: str) -> StreamState:
        """Derive what the forward needs from the stored basis and the unmerged weight."""
        settings = self.adapter_settings[adapter_name]
        return derive(settings, self.tensors(adapter_name), self.unmerged_weight)

    def check_tensors(self, settings: StreamSettings, tensors: Sequence[Tensor], what: str) -> None:
        """Refuse tensors that no basis has: see `values`."""
        check_tensors(tensors, settings.counts, what)

    def basis(self, adapter_name: str) -> LinearBasis:
        """The basis that an adapter holds; means are those of the unmerged layer."""
        _, mean, eigenvalues, total = self.tensors(adapter_name)
        components = self.state(adapter_name).directions
        counts = list(self.adapter_settings[adapter_name].counts)
        bias = self.linear.bias if self.unmerged is None else self.unmerged[1]
        parts = self.unmerged_weight.detach().to(mean).unflatten(1, (len(counts), -1))
        means = torch.einsum("dhe,he->hd", parts, mean.view(len(counts), -1))
        if bias is not None:
            means = means + bias.detach().to(mean) / len(counts)
        found = zip(means, components.split(counts), eigenvalues.split(counts), total, strict=True)
        return LinearBasis(tuple(UnitBasis(*parts) for parts in found), mean)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "ResiDualStreamLinear":
        """Let `.to()` move the unmerged weight as well, before a state is derived from it."""
        if recurse and self.unmerged is not None:
            weight, bias = self.unmerged
            self.unmerged = fn(weight), None if bias is None else fn(bias)
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for name in self._loading.bases:  # whatever it was made from, it is the file's now
            self.adapter_settings[name] = replace(self.adapter_settings[name], source=())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output (..., D) with the active adapters' change, or each sample's own.

        `adapter_names` (one name per sample, "__base__" for none) is PEFT's; not while adapters are
        merged.
        """
        names: list[str] | None = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if names is not None:
            return self._mixed(x, names, *args, **kwargs)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        chosen: Any = [] if self.merged else self.active_adapters
        dtype = result.dtype
        for name in filter(self.has, chosen):
            result = result + self.delta(x, name)
        return result.to(dtype)

    def delta(self, x: Tensor, adapter_name: str, gains: Tensor | None = None) -> Tensor:
        """Δy of one adapter for inputs (..., n): (..., D); `gains` in place of its own."""
        state: StreamState = self._here(adapter_name)
        gains = self.residual_peft_gains[adapter_name] if gains is None else gains
        cast: Any = self._cast_input_dtype
        x = cast(x, state.directions.dtype).unflatten(-1, (len(state.maps), -1))
        x = x - state.mean.to(x.dtype)  # before autocast rounds, or a large mean takes the digits
        coordinates = torch.einsum("...he,hke->...hk", x, state.maps).flatten(-2)
        if coordinates.shape[-1] != len(state.directions):  # heads of fewer directions were padded
            coordinates = coordinates.index_select(-1, state.order)
        return state.gains.change(coordinates, gains) @ state.directions

    def _mixed(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if not any(map(self.has, names)) and any(name != BASE for name in names):
            found: Tensor = self.base_layer(x, *args, **kwargs)  # names are for the other side
            return found
        check_one_each(names, len(x))
        if self.merged:
            raise ResiDualError(
                "Cannot pass `adapter_names` when there are merged adapters, please call "
                "`unmerge_adapter` first."
            )
        result: Tensor = self.base_layer(x, *args, **kwargs)
        groups: dict[int, list[int]] = {}  # samples whose adapters share a basis
        for row, name in enumerate(names):
            if name != BASE and self.has(name):
                groups.setdefault(id(self._here(name)), []).append(row)
        for rows in groups.values():
            gains = torch.stack([self.residual_peft_gains[names[row]] for row in rows])
            gains = gains.unflatten(0, (len(rows), *[1] * (x.ndim - 2)))
            index = torch.tensor(rows).to(x.device)
            delta = self.delta(x.index_select(0, index), names[rows[0]], gains)
            result = result.index_add(0, index, delta.to(result.dtype))
        return result

    @torch.no_grad()
    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW, in the layout of the base layer's weight."""
        state: StreamState = self._here(adapter_name)
        gains = self.residual_peft_gains[adapter_name]
        offsets = state.gains.offsets(gains, state.directions.dtype)
        padded = offsets.new_zeros(state.maps.shape[0] * state.maps.shape[1], self.out_features)
        padded[state.order] = offsets.unsqueeze(1) * state.directions
        padded = padded.view(len(state.maps), -1, self.out_features)
        delta = torch.einsum("hkd,hke->dhe", padded, state.maps).flatten(1)
        return delta.T.contiguous() if isinstance(self.linear, Conv1D) else delta

    @torch.no_grad()
    def get_delta_bias(self, adapter_name: str) -> Tensor | None:
        """Δb = −ΔW z̄ (D,), or None where every mean is zero, as for a basis from the weights."""
        mean = self._here(adapter_name).mean.flatten()
        if not bool(mean.any()):
            return None
        delta = self.get_delta_weight(adapter_name)
        return -(mean @ delta if isinstance(self.linear, Conv1D) else delta @ mean)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base layer's weight and bias.

        A Linear without bias gets one where the basis has a mean, until it is unmerged.

        Raises:
            ValueError: `safe_merge`, and the merged weights would hold NaN or infinite values.
        """
        base = self.linear
        for name in check_adapters_to_merge(self, adapter_names):
            if not self.has(name):
                continue
            weight, bias = _add(base.weight, self.get_delta_weight(name)), base.bias
            delta = self.get_delta_bias(name)
            if delta is not None:
                bias = delta.to(base.weight.dtype) if bias is None else _add(bias, delta)
            elif bias is not None:
                bias = bias.data
            finite = all(bool(t.isfinite().all()) for t in (weight, bias) if t is not None)
            if safe_merge and not finite:
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            if base.bias is None and bias is not None:
                warnings.warn(
                    f"the adapter {name!r} gives a bias to a Linear that has none "
                    f"({self.in_features} -> {self.out_features}), since its basis was fitted from "
                    "data: a saved merged model keeps it only where its class knows that bias.",
                    stacklevel=2,
                )
            if self.unmerged is None:
                self.unmerged = base.weight.data, None if base.bias is None else base.bias.data
            base.weight.data = weight
            _set_bias(base, bias)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Give the base layer back the very weight and bias that it had."""
        if not self.merged or self.unmerged is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base = self.linear
        base.weight.data, bias = self.unmerged
        _set_bias(base, bias)
        self.unmerged = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether ΔW is all: LoRA has no place for Δb, which a basis fitted from data brings."""
        if not self.has(adapter_name) or self.get_delta_bias(adapter_name) is None:
            return True
        warnings.warn(
            f"the adapter {adapter_name!r} cannot be converted to LoRA: its basis was fitted from "
            "data and moves the bias too, which LoRA cannot. Merge it with merge_and_unload(), or "
            "convert an adapter whose basis comes from the weights alone.",
            stacklevel=2,
        )
        return False


def _add(tensor: Tensor, delta: Tensor) -> Tensor:
    return (tensor.data.to(delta.dtype) + delta.to(tensor.device)).to(tensor.dtype)


def _set_bias(base: Any, bias: Tensor | None) -> None:
    """Give a Linear this bias; its own parameter stays the object that it was."""
    if bias is None or base.bias is None:
        base.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    else:
        base.bias.data = bias
