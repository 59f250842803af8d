"""The bases of stream mode: PCA of what each head writes to the stream, over all tokens.

Head h of a Linear with weight W (D, n) reads the columns z_h (e,) of its input and writes
`a_h = W_h z_h + b/H`. The PCA of a_h needs only the mean z̄_h and covariance of z_h; the shared bias
moves every a_h alike and drops out of `a_h − μ_h = W_h (z_h − z̄_h)` (`method.md`, section 5).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...bases.fingerprint import digest_of_tensors
from ...bases.moments import Moments
from ...bases.processes import Processes, summed
from ...bases.reading import running
from ...bases.spectra import Components, UnitBasis, map_spectra, weight_spectrum
from ...data.progress import Progress, with_progress
from ...errors import ResiDualError
from ...towers.anatomy import TowerAnatomy
from ...towers.readouts import float64
from ...towers.registry import base_model
from ...towers.running import batch_size, checked_inputs, run_tower
from .linears import linear_weight, tower_or_none


@dataclass(frozen=True)
class LinearBasis:
    """The basis of what one Linear writes: directions in its output space, head by head.

    H heads, D out_features, n in_features. Each head's `mean` is that of a_h, b/H included.
    """

    heads: tuple[UnitBasis, ...]
    input_mean: Tensor  # z̄ of all heads, one after the other (n,)

    @property
    def component_counts(self) -> list[int]:
        """The number of directions k_h of each head."""
        return [len(head.components) for head in self.heads]

    def truncate(self, components: Sequence[Components]) -> "LinearBasis":
        """Cut each head's directions."""
        pairs = zip(self.heads, components, strict=True)
        return LinearBasis(tuple(cut(*pair) for pair in pairs), self.input_mean)


def cut(head: UnitBasis, components: Components) -> UnitBasis:
    """`UnitBasis.truncate`; 0 leaves no direction."""
    if components == 0:
        return replace(head, components=head.components[:0], eigenvalues=head.eigenvalues[:0])
    return head.truncate(components)


def weight_basis(module: nn.Module, heads: int, weight: Tensor) -> LinearBasis:
    """Basis from the weights alone, as if the input were white: SVD of each W_h, z̄ = 0, μ_h = b/H.

    The weight (D, n) is that before anything was merged into it.
    """
    weight = float64(weight)
    mean = _share_of_bias(module, heads, weight)
    parts = weight.unflatten(1, (heads, -1)).unbind(1)
    return LinearBasis(
        tuple(weight_spectrum(part, mean) for part in parts),
        torch.zeros(weight.shape[1], dtype=torch.float64),
    )


def data_basis(module: nn.Module, moments: Moments) -> LinearBasis:
    """PCA of a_h = W_h z_h + b/H from the moments of z (H, e): thin QR W_h = Q T, then T Cov Tᵀ."""
    heads = len(moments.mean)
    weight = float64(linear_weight(module)).to(moments.mean.device)
    shared = _share_of_bias(module, heads, weight)
    parts = weight.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, D, e)
    return LinearBasis(tuple(map_spectra(parts, moments, shared)), moments.mean.flatten().cpu())


def _share_of_bias(module: nn.Module, heads: int, weight: Tensor) -> Tensor:
    bias: Any = module.bias
    return weight.new_zeros(len(weight)) if bias is None else float64(bias).to(weight) / heads


@dataclass
class InputMoments:
    """A pre-forward hook on a Linear: adds every token of its input, sorted by head."""

    heads: int
    moments: Moments = field(default_factory=Moments)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Add what is about to enter; all leading dimensions are samples."""
        seen: Tensor = args[0] if args else kwargs["input"]
        self.moments.update(float64(seen).reshape(-1, self.heads, seen.shape[-1] // self.heads))


def collect_moments(
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, int]],
    batches: Iterable[Any],
    progress: Progress = False,
    *,
    across_processes: bool = False,
    side: str | None = None,
) -> tuple[dict[str, Moments], int]:
    """Run the unadapted model once over the batches: moments of what enters each Linear.

    Every token that enters counts, padding included. The hooks go away even when a batch raises.

    Args:
        model: the adapted model.
        layers: path -> module to read the input of, and its number of heads.
        batches: images or texts for a known tower; otherwise, or with both, what the model takes: a
            mapping of its arguments, or a tensor for its first one.
        progress: True for a bar, or what to call after each batch with its number of samples.
        across_processes: whether each process of `torch.distributed` gives its own share, which may
            be empty.
        side: the tower that a tensor is for; None the image tower where there is one.
    """
    processes = Processes.running() if across_processes else Processes()
    if isinstance(batches, Tensor | Mapping):
        batches = [batches]
    readers = {path: InputMoments(heads) for path, (_, heads) in layers.items()}
    handles = [
        module.register_forward_pre_hook(readers[path], with_kwargs=True)
        for path, (module, _) in layers.items()
    ]
    count = 0
    try:
        with processes.in_step():
            for batch in with_progress(batches, "Fitting bases", progress, unit="sample"):
                count += _run(model, batch, side)
    finally:
        for handle in handles:
            handle.remove()
    found = {path: reader.moments for path, reader in readers.items()}
    if across_processes:
        found, count = _pooled(found, layers, processes, count)
    for path, moments in found.items():
        _check_moments(path, moments, count)
    return found, count


def _pooled(
    moments: dict[str, Moments],
    layers: Mapping[str, tuple[nn.Module, int]],
    processes: Processes,
    count: int,
) -> tuple[dict[str, Moments], int]:
    """Add up what all processes saw."""
    weights = {
        f"{path} {heads}": [linear_weight(module)] for path, (module, heads) in layers.items()
    }
    processes.check_same(
        {"number of Linears": len(layers), "weights": digest_of_tensors(weights)[:12]},
        "load the same model in the same precision, and adapt the same Linears everywhere.",
    )
    found = {}
    for path, (module, heads) in sorted(layers.items()):
        weight = linear_weight(module)
        shape = (heads, weight.shape[1] // heads)
        found[path] = moments[path].across_processes(shape, float64(weight[:0]).device)
    return found, int(summed(torch.tensor(count)))


def _tower_of(model: nn.Module, batch: Any, side: str | None) -> TowerAnatomy | None:
    """Find the tower that a batch is for; None where it is unknown, or the batch is for both."""
    if isinstance(batch, Mapping):
        given = {"image": "pixel_values" in batch, "text": "input_ids" in batch}
        if all(given.values()):
            return None
        side = next((name for name, there in given.items() if there), side)
    return tower_or_none(model, side)


def _run(model: nn.Module, batch: Any, side: str | None) -> int:
    """Run the unadapted model on one batch, and count its samples."""
    device = next(model.parameters()).device
    with running(model):
        if (tower := _tower_of(model, batch, side)) is not None:
            inputs = checked_inputs(tower, batch)
            run_tower(model, inputs, anatomy=tower)
            return batch_size(inputs)
        if isinstance(batch, Tensor):
            base_model(model)(batch.to(device))
            return len(batch)
        if not isinstance(batch, Mapping) or not any(isinstance(v, Tensor) for v in batch.values()):
            raise ResiDualError(
                f"wanted batches that are tensors or mappings of the arguments of "
                f"{type(base_model(model)).__name__}, got a {type(batch).__name__}."
            )
        # a row's number is for whoever reads the data, not for a model
        given = {k: v for k, v in batch.items() if k != "index"}
        given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()}
        base_model(model)(**given)
        return next(len(value) for value in given.values() if isinstance(value, Tensor))


def _check_moments(path: str, moments: Moments, count: int) -> None:
    if moments.count < 2:
        raise ResiDualError(
            f"too few samples: a basis needs at least 2 tokens at {path}, got {moments.count} in "
            f"{count} samples. Give more, or exclude a module that the model does not call."
        )
    if not bool(moments.m2.isfinite().all()):
        raise ResiDualError(
            f"the model computes NaN or infinite values, seen at the input of {path}: load it in "
            "float32 or bfloat16, and look at its weights and at the batches."
        )
