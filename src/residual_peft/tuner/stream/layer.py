"""Stream mode as a PEFT layer: gains written into a Linear's weights, which they can merge into."""

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...errors import ResiDualError
from ..mixing import BASE, weighted_gains
from .state import StreamLayer
from .tensors import DERIVED


# "Linear" in the class's name is how PEFT knows it again for target_modules="all-linear"
class ResiDualStreamLinear(StreamLayer):
    """Stands around a Linear (D, n), and adds what the gains change to its output.

    With Φ_h (k_h, D) the directions of head h, A_h = Φ_h W_h kept beside them, z_h (e,) its part of
    the input and z̄_h the mean of that (`method.md`, section 5; the bias drops out of a_h − μ_h):

        Δy = Σ_h Φ_hᵀ diag(λ_h − 1) A_h (z_h − z̄_h)

    which is ΔW = Σ_h Φ_hᵀ diag(λ_h − 1) A_h on its columns and Δb = −ΔW z̄. Since A is kept and
    not computed from the weight, the change does not depend on what is merged at the moment. While
    adapters are merged, the unmerged weight is kept too, so that unmerging loses no digit.

    The forward keeps no state.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output (..., D) with the active adapters' change, or each sample's own.

        `adapter_names` (one name per sample, "__base__" for none) is PEFT's.

        Raises:
            ResiDualError: `adapter_names` of another length, or while adapters are merged.
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

    def delta(self, x: Tensor, adapter_name: str, change: Tensor | None = None) -> Tensor:
        """Δy of one adapter for inputs (..., n): (..., D); `change` in place of its own λ − 1."""
        change = self.change(adapter_name) if change is None else change
        settings = self.adapter_settings[adapter_name]
        components, maps, order = (getattr(self, name)[adapter_name] for name in DERIVED)
        mean = self.residual_peft_input_mean[adapter_name]
        cast: Any = self._cast_input_dtype
        x = cast(x, components.dtype).unflatten(-1, (settings.heads, -1))
        shift = torch.einsum("he,hke->hk", mean.view(settings.heads, -1), maps)
        coordinates = (torch.einsum("...he,hke->...hk", x, maps) - shift).flatten(-2)
        if coordinates.shape[-1] != len(components):  # heads of fewer directions were padded
            coordinates = coordinates.index_select(-1, order)
        return (coordinates * change) @ components

    def _mixed(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if len(x) != len(names):
            raise ResiDualError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ResiDualError(
                "Cannot pass `adapter_names` when there are merged adapters, please call "
                "`unmerge_adapter` first."
            )
        result: Tensor = self.base_layer(x, *args, **kwargs)
        groups: dict[Any, list[int]] = {}  # samples whose adapters share a basis
        for row, name in enumerate(names):
            if name != BASE and self.has(name):
                groups.setdefault(self._basis_key(name), []).append(row)
        for rows in groups.values():
            change = torch.stack([self.change(names[row]) for row in rows])
            change = change.unflatten(0, (len(rows), *[1] * (x.ndim - 2)))
            index = torch.tensor(rows).to(x.device)
            delta = self.delta(x.index_select(0, index), names[rows[0]], change)
            result = result.index_add(0, index, delta.to(result.dtype))
        return result

    def _basis_key(self, adapter_name: str) -> Any:
        """What adapters that share a basis have in common."""
        tensors = (*self.tensors(adapter_name)[:2], self.residual_peft_maps[adapter_name])
        return (*map(id, tensors), self.adapter_settings[adapter_name].counts)

    def check_one_basis(self, adapters: list[str]) -> None:
        """Refuse adapters whose gains do not mean the same: another basis, or other settings.

        Raises:
            ResiDualError: names the two, or one whose weights were never loaded.
        """
        for name in adapters:
            self.check_ready(name)
            if self.has(name) != self.has(adapters[0]) or not self._one_basis(adapters[0], name):
                raise ResiDualError(
                    f"the adapters {adapters[0]!r} and {name!r} do not share one basis with the "
                    "same modules and granularity, so that their gains mean different things; "
                    "activate both with set_adapter([...])."
                )

    def _one_basis(self, one: str, other: str) -> bool:
        if not self.has(one):
            return True
        mine, theirs = self.adapter_settings[one], self.adapter_settings[other]
        same_settings = (mine.counts, mine.per_unit) == (theirs.counts, theirs.per_unit)
        pairs = zip(self.tensors(one), self.tensors(other), strict=True)
        return same_settings and all(a is b for a, b in pairs)

    def combine(self, adapters: list[str], weights: list[float], adapter_name: str) -> None:
        """Put in an adapter whose gains are the weighted sum of others' over their one basis."""
        first = adapters[0]
        if not self.has(first):
            return
        gains = [self.residual_peft_gains[name] for name in adapters]
        directions = self.residual_peft_directions
        self.update_layer(
            adapter_name,
            self.adapter_settings[first],
            self.tensors(first),
            weighted_gains(gains, weights, 1.0),
            save_basis=first not in directions._non_persistent_buffers_set,
        )
        self.residual_peft_gains[adapter_name].requires_grad_(False)

    @torch.no_grad()
    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW, in the layout of the base layer's weight."""
        settings = self.adapter_settings[adapter_name]
        components, maps, order = (getattr(self, name)[adapter_name] for name in DERIVED)
        scaled = components * self.change(adapter_name).unsqueeze(1)
        padded = scaled.new_zeros(maps.shape[0] * maps.shape[1], self.out_features)
        padded[order] = scaled
        padded = padded.view(settings.heads, -1, self.out_features)
        delta = torch.einsum("hkd,hke->dhe", padded, maps).flatten(1)
        return delta.T.contiguous() if isinstance(self.linear, Conv1D) else delta

    @torch.no_grad()
    def get_delta_bias(self, adapter_name: str) -> Tensor | None:
        """Δb = −ΔW z̄ (D,), or None where every mean is zero, as for a basis from the weights."""
        mean = self.residual_peft_input_mean[adapter_name]
        if not bool(mean.any()):
            return None
        return -self.delta_of(mean, adapter_name)

    def delta_of(self, z: Tensor, adapter_name: str) -> Tensor:
        """ΔW z for one input (n,)."""
        delta = self.get_delta_weight(adapter_name)
        return z @ delta if isinstance(self.linear, Conv1D) else delta @ z

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
            weight, bias = self._with(name)
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

    def _with(self, adapter_name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the base layer as they would be with one more adapter merged."""
        weight, bias = self.linear.weight, self.linear.bias
        delta = self.get_delta_bias(adapter_name)
        if delta is not None:
            bias = delta.to(weight.dtype) if bias is None else _add(bias, delta)
        elif bias is not None:
            bias = bias.data
        return _add(weight, self.get_delta_weight(adapter_name)), bias

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
        if not self.has(adapter_name):
            return True
        if self.get_delta_bias(adapter_name) is None:
            return True
        warnings.warn(
            f"the adapter {adapter_name!r} cannot be converted to LoRA: its basis was fitted from "
            "data and moves the bias too, which LoRA cannot. Merge it with merge_and_unload(), or "
            "convert an adapter whose basis comes from the weights alone.",
            stacklevel=2,
        )
        return False

    def __repr__(self) -> str:
        return f"residual_peft.{super().__repr__()}"


def _add(tensor: Tensor, delta: Tensor) -> Tensor:
    return (tensor.data.to(delta.dtype) + delta.to(tensor.device)).to(tensor.dtype)


def _set_bias(base: Any, bias: Tensor | None) -> None:
    """Give a Linear this bias; its own parameter stays the object that it was."""
    if bias is None or base.bias is None:
        base.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    else:
        base.bias.data = bias
