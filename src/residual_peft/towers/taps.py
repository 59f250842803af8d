"""Hooks that read what each part of a tower writes, and keep no state on its modules.

They read what the tower goes on with, whoever registered hooks before or after them: the input of a
module as it was called, and its output behind all other hooks. What other hooks may do besides is
noted (`Capture.foreign`), so that the sum of what was read can be checked.
"""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .anatomy import TowerAnatomy
from .captures import CAPTURE_ATTRIBUTE, Capture, _frames, capture_of, take_capture
from .fused_attention import heads_at
from .readouts import FIRST_TOKEN, Readout, inverse_sigma, token_of
from .registry import find_tower


@dataclass(frozen=True)
class _Hook:
    """A hook without state: `key` names the installation, so that overlapping ones do not mix.

    Plain data, so that a tapped model can be copied and pickled.
    """

    key: str
    slot: str = ""
    layer: int = 0
    all_tokens: bool = False
    tokens_first: bool = False  # (T, B, D)

    def read(self, value: Any, capture: Capture) -> Tensor:
        """Clone the readout token of (B, T, D), or of (B, D) where it was picked already."""
        tensor = value[0] if isinstance(value, tuple | list) else value
        tensor = tensor.transpose(0, 1) if self.tokens_first and tensor.ndim == 3 else tensor
        tensor = tensor if self.all_tokens else token_of(tensor, capture.where)
        return tensor.detach().clone()


HARMLESS = ("residual_peft.", "transformers.utils.output_capturing")
"""Modules whose hooks only read."""

Hooks = OrderedDict[int, Any]


@dataclass
class _Watch:
    """The hooks in a tower: the taps stay the last of them, and those of others are noticed.

    It holds the modules' own dictionaries of hooks, which copying and pickling keep together.
    """

    last: list[tuple[Hooks, int]] = field(default_factory=list)  # where a tap is, and its number
    hooks: list[Hooks] = field(default_factory=list)  # all that a tower's modules have
    taps: int = 0


def is_foreign(hook: Any) -> bool:
    """Whether a hook may change what it sees."""
    return not getattr(hook, "__module__", "").startswith(HARMLESS)


def _foreign(watch: _Watch) -> bool:
    """Put the taps behind hooks that were registered after them; say if others have any."""
    if sum(map(len, watch.hooks)) == watch.taps:
        return False
    for hooks, number in watch.last:
        seen = list(hooks)  # another thread may tap the same tower
        later = [hooks.get(other) for other in seen[seen.index(number) + 1 :]]
        if any(hook is not None and not isinstance(hook, _Hook) for hook in later):
            hooks.move_to_end(number)
    return any(is_foreign(hook) for hooks in watch.hooks for hook in list(hooks.values()))


# torch.compile takes the answer, and the order of the hooks, from when it follows the code; what is
# registered later it does not run (`torch.compiler.assume_constant_result`, without its import)
_foreign._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Open(_Hook):
    """Starts a frame; of temporary taps in their `own` thread only.

    As another thread removes its taps, torch may call one without the arguments it is to have.
    """

    readout: Readout = FIRST_TOKEN
    watch: _Watch = field(default_factory=_Watch, compare=False)
    own: int | None = None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if kwargs is None or (self.own and self.own != threading.get_ident()):
            return
        _frames.open[self.key] = Capture(
            heads=[None] * self.layer,
            mlps=[None] * self.layer,
            layers=[None] * self.layer,
            where=self.readout.locate(args, kwargs),
            foreign=_foreign(self.watch),
        )


class _Close(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        _frames.open.pop(self.key, None)


class _TapAttention(_Hook):
    """On an attention that never calls its output projection: compute what that would get."""

    def __call__(self, module: Any, args: Any, kwargs: Any, output: Any = None) -> None:
        if (capture := _frames.open.get(self.key)) is not None:
            value = heads_at(module, capture.where, *args, **kwargs)
            capture.waiting = (self, value, capture.waiting)


@dataclass(frozen=True)
class _Tap(_Hook):
    """Reads a module's output, or its input `before`, as all hooks have made it."""

    before: bool = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        # no frame: the tower is not running, as when checkpointing runs a block again
        if (capture := _frames.open.get(self.key)) is None:
            return
        if self.slot in ("heads", "mlps", "layers"):
            value = self.read(args if self.before else output, capture)
            capture.waiting = (self, value, capture.waiting)
        elif self.slot != "stream" or capture.stream is None:  # the final norm may run once more
            setattr(capture, self.slot, self.read(args if self.before else output, capture))


def _put(capture: Capture) -> None:
    """Put what taps read of the layers where it belongs; of what ran twice the last counts.

    Not as it is read: torch.compile, region by region, would compile each layer for its number.
    """
    parts = []
    while capture.waiting is not None:
        tap, value, capture.waiting = capture.waiting
        parts.append((tap, value))
    for tap, value in reversed(parts):
        getattr(capture, tap.slot)[tap.layer] = value


@dataclass(frozen=True)
class _Finish(_Hook):
    """On the last module: read the stream, pool, and let the capture travel on with the output."""

    readout: Readout = FIRST_TOKEN
    eps: float = 0.0
    sliced: bool = False

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if (capture := _frames.open.get(self.key)) is None or not self.readout.ends(args):
            return
        if (capture.pooled if self.readout.weighted else capture.stream) is not None:
            return  # it runs once more, for a token that is not the readout
        _put(capture)
        if self.readout.weighted:
            with torch.autocast(output.device.type, enabled=False):  # weights are not rounded
                self._pool(module, capture, args, kwargs)
        else:
            capture.stream = self.read(args, capture)
            if self.sliced:
                capture.normed = self.read(output, capture)
        if self.slot == "keep":
            _frames.finished[self.key] = capture
        if (earlier := capture_of(output)) is None:
            setattr(output, CAPTURE_ATTRIBUTE, capture)
        else:
            earlier.absorb(capture)

    def _pool(self, module: nn.Module, capture: Capture, args: Any, kwargs: Any) -> None:
        """Sum what was seen of tokens with their weights."""
        assert capture.stream is not None
        stream = capture.stream if self.readout.all_tokens else capture.stream[:, None]
        inverse = inverse_sigma(stream, self.eps)
        weights = self.readout.weights(stream, capture.where, module, args, kwargs)
        weights = weights.detach().to(inverse.dtype)
        capture.constant = self.readout.constant(weights)
        weights = weights * inverse[:, None]
        capture.pooled = weights.sum(2)

        def pool(tensor: Tensor) -> Tensor:
            tensor = tensor.to(weights.dtype)
            return weights @ tensor if tensor.ndim == 3 else weights * tensor[:, None]

        seen = [*capture.heads, *capture.mlps, capture.stream]
        capture.eps = max(torch.finfo(t.dtype).eps for t in seen if t is not None)
        for part in (capture.heads, capture.mlps, capture.layers):
            part[:] = [None if tensor is None else pool(tensor) for tensor in part]
        capture.embed = None if capture.embed is None else pool(capture.embed)
        capture.stream = pool(capture.stream)


def install_taps(
    anatomy: TowerAnatomy, *, layers: bool = False, key: str | None = None, own: int | None = None
) -> list[RemovableHandle]:
    """Install permanent taps; `capture_of(output of the last module)` then holds the capture.

    That is the final norm, or what pools its tokens. They survive `copy.deepcopy` and pickling, may
    overlap with others, and are taken away again by calling `remove()` on each handle. With a
    `key`, `take_capture(key)` gives the capture as well, where the tensor does not get through.
    With an `own` thread, by its `threading.get_ident`, others' passes are not read.
    """
    keep, key = key is not None, key or uuid.uuid4().hex
    readout, tokens = anatomy.readout, anatomy.readout.all_tokens
    opened = _Open(key, layer=len(anatomy.layers), readout=readout, own=own)
    finish = _Finish(
        key,
        slot="keep" if keep else "",
        readout=readout,
        eps=float(anatomy.final_norm.eps),
        sliced=anatomy.cuts_out,
    )
    handles = [
        anatomy.tower.register_forward_pre_hook(opened, with_kwargs=True),
        # always_call: a tower that raises must not leave its frame behind
        anatomy.tower.register_forward_hook(_Close(key), always_call=True),
    ]

    def hook(module: nn.Module, tap: Any, with_kwargs: bool = False) -> None:
        handles.append(module.register_forward_hook(tap, with_kwargs=with_kwargs))

    if readout.weighted:
        hook(anatomy.final_norm, _Tap(key, "stream", all_tokens=tokens, before=True))
    hook(readout.end or anatomy.final_norm, finish, with_kwargs=True)
    if readout.pooler is not None:
        hook(readout.pooler.mlp, _Tap(key, "pooler"))
    hook(anatomy.embedding, _Tap(key, "embed", all_tokens=tokens))
    for index, layer in enumerate(anatomy.layers):
        if layer.attention is not None:
            hook(layer.attention, _TapAttention(key, "heads", index), with_kwargs=True)
        else:
            hook(layer.output_projection, _Tap(key, "heads", index, tokens, before=True))
        hook(layer.mlp, _Tap(key, "mlps", index, tokens, layer.tokens_first))
        if layers:
            hook(layer.module, _Tap(key, "layers", index, tokens, layer.tokens_first))
    _watch(opened.watch, anatomy, handles)
    return handles


def _watch(watch: _Watch, anatomy: TowerAnatomy, handles: list[RemovableHandle]) -> None:
    """Let a watch know the hooks of a tower and its projection, and which of them are the taps."""
    modules = list(anatomy.tower.modules())
    if isinstance(anatomy.projection, nn.Module):
        modules.append(anatomy.projection)
    for module in dict.fromkeys(modules):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            watch.hooks.append(cast(Hooks, hooks))
    watch.taps = len(handles)
    for handle in handles:
        hooks = cast(Hooks, handle.hooks_dict_ref())
        # the others read inputs, which come first
        if isinstance(tap := hooks[handle.id], _Tap) and not tap.before:
            watch.last.append((hooks, handle.id))


def is_tapped(anatomy: TowerAnatomy) -> bool:
    """Whether a tower has taps, as those of a readout adapter."""
    return any(isinstance(hook, _Open) for hook in anatomy.tower._forward_pre_hooks.values())


@dataclass
class Tap:
    """Handle on temporary taps: `take()` gives this thread's last finished capture, once."""

    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def take(self) -> Capture:
        """Return the capture of this thread's last forward pass, which must have run to its end."""
        if (capture := take_capture(self.key)) is None:
            raise RuntimeError("no forward pass of the tapped tower has finished in this thread")
        return capture


@contextmanager
def tapped(model: nn.Module | TowerAnatomy, *, layers: bool = False) -> Iterator[Tap]:
    """Tap a tower for this thread, its blocks with `layers`, until the block ends, if it raises."""
    anatomy = model if isinstance(model, TowerAnatomy) else find_tower(model)
    tap = Tap()
    handles = install_taps(anatomy, layers=layers, key=tap.key, own=threading.get_ident())
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
        _frames.open.pop(tap.key, None)
        _frames.finished.pop(tap.key, None)
