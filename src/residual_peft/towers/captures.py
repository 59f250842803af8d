"""What the taps saw in one forward pass, and how it is handed over.

While a tower runs, what the taps saw lies in a thread-local frame, and when the final norm has run
it is attached to that norm's output tensor. Two threads in one model never meet, and a block that
raises leaves nothing behind.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ResiDualError
from .readouts import Where, inverse_sigma
from .units import Unit

CAPTURE_ATTRIBUTE = "_residual_capture"


@dataclass
class Capture:
    """What the taps saw in one forward pass at the readout token, detached, in the model's dtype.

    Where the readout is pooled, each tensor is (B, J, ...) instead: what was seen of all tokens,
    summed with their weights w (`readouts`), in float32 or better. Entries that were not asked for
    are None.
    """

    heads: list[Tensor | None]  # per layer (B, H·e): the input of the output projection
    mlps: list[Tensor | None]  # per layer (B, D): the MLP's output, before any layer scale
    layers: list[Tensor | None]  # per layer (B, D): the block's output
    embed: Tensor | None = None  # (B, D)
    stream: Tensor | None = None  # (B, D): h, the input of the final norm
    pooled: Tensor | None = None  # (B, J): Σ_t w_jt where the readout is pooled
    eps: float = 0.0  # of the lowest precision that was seen before it was pooled
    pooler: Tensor | None = None  # (B, d): what the MLP after an attention pooling wrote
    constant: Tensor | None = None  # (B,): what `constant_map` is multiplied with
    where: Where = None  # where the readout was read
    normed: Tensor | None = None  # (B, D): the final norm's output, where the projection slices it
    foreign: bool = False  # whether others had hooks in the tower that may have changed something
    # what was read of layers while the tower runs: tap, tensor and what was there before
    waiting: tuple[Any, Tensor, Any] | None = None

    def of(self, unit: Unit) -> Tensor:
        """What was seen of a unit: of a head its whole layer, of `output` the whole stream."""
        layered = {"head": self.heads, "mlp": self.mlps}
        whole = {"embed": self.embed, "pooler": self.pooler, "output": self.stream}
        found = whole.get(unit.kind) if unit.layer is None else layered[unit.kind][unit.layer]
        if found is None:
            raise ResiDualError(
                f"the forward pass ran without {unit}: a module of the tower was replaced, or "
                "called in another way, after the adapter was put in; load the model and the "
                "adapter afresh."
            )
        return found

    def totals(self, eps: float) -> Tensor:
        """Σ_t w_jt, (B, J), in float32 or better: 1/σ where one token is read."""
        if self.pooled is not None:
            return self.pooled
        assert self.stream is not None
        return inverse_sigma(self.stream, eps)[:, None]

    def scaled(self, tensor: Tensor, totals: Tensor) -> Tensor:
        """What was seen of a part, times its weight: (B, J, n) in the dtype of `totals`."""
        if self.pooled is not None:
            return tensor.to(totals.dtype)
        return tensor.to(totals.dtype)[:, None] * totals[:, :, None]

    def rows(self, index: Tensor) -> "Capture":
        """What was seen of some samples of the batch."""
        return self.map(lambda tensor: tensor.index_select(0, index))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Capture":
        """Apply a function, such as a move to another device, to every tensor."""

        def apply(value: Any) -> Any:
            if isinstance(value, list):
                return [apply(tensor) for tensor in value]
            return function(value) if isinstance(value, Tensor) else value

        return Capture(**{name: apply(value) for name, value in vars(self).items()})

    def absorb(self, other: "Capture") -> None:
        """Take over from another capture of the same forward pass the blocks' outputs."""
        pairs = zip(self.layers, other.layers, strict=True)
        self.layers = [a if a is not None else b for a, b in pairs]
        self.foreign |= other.foreign


class _Frames(threading.local):
    """Per thread: the captures being filled, by installation, and those just finished."""

    def __init__(self) -> None:
        self.open: dict[str, Capture] = {}
        self.finished: dict[str, Capture] = {}


_frames = _Frames()


def capture_of(tensor: Tensor) -> Capture | None:
    """Return the capture that travels with the final norm's output, if taps were installed."""
    return getattr(tensor, CAPTURE_ATTRIBUTE, None)


def take_capture(key: str) -> Capture | None:
    """Return this thread's last finished capture of an installation, once."""
    return _frames.finished.pop(key, None)
