"""Hooks that read what each part of a tower writes, and keep no state on its modules.

While a tower runs, what the taps saw lies in a thread-local frame, and when the final norm has run
it is attached to that norm's output tensor. Two threads in one model never meet, and a block that
raises leaves nothing behind.
"""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .anatomy import TowerAnatomy, find_tower

CAPTURE_ATTRIBUTE = "_residual_capture"


@dataclass
class Capture:
    """What the taps saw in one forward pass at the readout token, detached, in the model's dtype.

    Entries that were not asked for are None.
    """

    heads: list[Tensor | None]  # per layer (B, H·e): the input of the output projection
    mlps: list[Tensor | None]  # per layer (B, D): the MLP's output, before any layer scale
    layers: list[Tensor | None]  # per layer (B, D): the block's output
    embed: Tensor | None = None  # (B, D)
    stream: Tensor | None = None  # (B, D): h, the input of the final norm

    def sigma(self, eps: float) -> Tensor:
        """σ = sqrt(var(h) + eps) of the stream, (B, 1), in float32 or better."""
        assert self.stream is not None
        stream = self.stream.to(torch.promote_types(self.stream.dtype, torch.float32))
        return (stream.var(dim=-1, correction=0, keepdim=True) + eps).sqrt()

    def rows(self, index: Tensor) -> "Capture":
        """What was seen of some samples of the batch."""

        return self.map(lambda tensor: tensor.index_select(0, index))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Capture":
        """Apply a function, such as a move to another device, to every tensor."""

        def apply(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        return Capture(
            heads=[apply(tensor) for tensor in self.heads],
            mlps=[apply(tensor) for tensor in self.mlps],
            layers=[apply(tensor) for tensor in self.layers],
            embed=apply(self.embed),
            stream=apply(self.stream),
        )

    def absorb(self, other: "Capture") -> None:
        """Fill in from another capture of the same forward pass what is missing in this one."""
        for mine, theirs in ((self.heads, other.heads), (self.mlps, other.mlps)):
            mine[:] = [a if a is not None else b for a, b in zip(mine, theirs, strict=True)]
        self.layers = [
            a if a is not None else b for a, b in zip(self.layers, other.layers, strict=True)
        ]
        self.embed = other.embed if self.embed is None else self.embed


class _Frames(threading.local):
    """Per thread: the captures being filled, by installation, and those just finished."""

    def __init__(self) -> None:
        self.open: dict[str, Capture] = {}
        self.finished: dict[str, Capture] = {}


_frames = _Frames()


def capture_of(tensor: Tensor) -> Capture | None:
    """Return the capture that travels with the final norm's output, if taps were installed."""
    return getattr(tensor, CAPTURE_ATTRIBUTE, None)


@dataclass(frozen=True)
class _Hook:
    """A hook without state: `key` names the installation, so that overlapping ones do not mix.

    Plain data, so that a tapped model can be copied and pickled.
    """

    key: str
    token: int = 0
    slot: str = ""
    layer: int = 0

    def read(self, value: Any) -> Tensor:
        """Clone the readout token of (B, T, D), or of (B, D) where it was picked already."""
        tensor = value[0] if isinstance(value, tuple | list) else value
        tensor = tensor[:, self.token] if tensor.ndim == 3 else tensor
        return tensor.detach().clone()


class _Open(_Hook):
    def __call__(self, module: nn.Module, args: Any) -> None:
        _frames.open[self.key] = Capture(
            heads=[None] * self.layer, mlps=[None] * self.layer, layers=[None] * self.layer
        )


class _Close(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        _frames.open.pop(self.key, None)


class _TapInput(_Hook):
    def __call__(self, module: nn.Module, args: Any) -> None:
        # no frame: the tower is not running, as when checkpointing runs a block again
        if (capture := _frames.open.get(self.key)) is not None:
            getattr(capture, self.slot)[self.layer] = self.read(args)


class _TapOutput(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if (capture := _frames.open.get(self.key)) is None:
            return
        if self.slot == "embed":
            capture.embed = self.read(output)
        else:
            getattr(capture, self.slot)[self.layer] = self.read(output)


class _Finish(_Hook):
    """On the final norm: read the stream and let the capture travel on with the output."""

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if (capture := _frames.open.get(self.key)) is None:
            return
        capture.stream = self.read(args)
        if self.slot == "keep":
            _frames.finished[self.key] = capture
        if (earlier := capture_of(output)) is None:
            setattr(output, CAPTURE_ATTRIBUTE, capture)
        else:
            earlier.absorb(capture)


def install_taps(
    anatomy: TowerAnatomy,
    *,
    heads: bool = True,
    mlps: bool = True,
    embed: bool = True,
    layers: bool = False,
) -> list[RemovableHandle]:
    """Install permanent taps; `capture_of(output of the final norm)` then holds the capture.

    They survive `copy.deepcopy` and pickling, may overlap with others, and are taken away again by
    calling `remove()` on each handle.
    """
    return _install(anatomy, _Hook(uuid.uuid4().hex), heads, mlps, embed, layers)


def _install(
    anatomy: TowerAnatomy, hook: _Hook, heads: bool, mlps: bool, embed: bool, layers: bool
) -> list[RemovableHandle]:
    key, token = hook.key, anatomy.readout_token
    depth = len(anatomy.layers)
    handles = [
        anatomy.tower.register_forward_pre_hook(_Open(key, layer=depth)),
        # always_call: a tower that raises must not leave its frame behind
        anatomy.tower.register_forward_hook(_Close(key), always_call=True),
        anatomy.final_norm.register_forward_hook(_Finish(key, token, hook.slot)),
    ]
    if embed:
        tap = _TapOutput(key, token, "embed")
        handles.append(anatomy.embedding.register_forward_hook(tap))
    for index, layer in enumerate(anatomy.layers):
        if heads:
            before = _TapInput(key, token, "heads", index)
            handles.append(layer.output_projection.register_forward_pre_hook(before))
        if mlps:
            tap = _TapOutput(key, token, "mlps", index)
            handles.append(layer.mlp.register_forward_hook(tap))
        if layers:
            tap = _TapOutput(key, token, "layers", index)
            handles.append(layer.module.register_forward_hook(tap))
    return handles


@dataclass
class Tap:
    """Handle on temporary taps: `take()` gives this thread's last finished capture, once."""

    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def take(self) -> Capture:
        """Return the capture of this thread's last forward pass.

        Raises:
            RuntimeError: no tower has run to its end since the last call.
        """
        if (capture := _frames.finished.pop(self.key, None)) is None:
            raise RuntimeError("no forward pass of the tapped tower has finished in this thread")
        return capture


@contextmanager
def tapped(
    model: nn.Module | TowerAnatomy,
    *,
    heads: bool = True,
    mlps: bool = True,
    embed: bool = True,
    layers: bool = False,
) -> Iterator[Tap]:
    """Tap a tower while the block runs; the hooks go away even when it raises."""
    anatomy = model if isinstance(model, TowerAnatomy) else find_tower(model)
    tap = Tap()
    handles = _install(anatomy, _Hook(tap.key, slot="keep"), heads, mlps, embed, layers)
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
        _frames.open.pop(tap.key, None)
        _frames.finished.pop(tap.key, None)
