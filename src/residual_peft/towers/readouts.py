"""How a readout is made of tokens: one interface, whatever a tower does after its final LayerNorm.

A readout token is the simplest case: y = P LN(h) + b with σ of that token. Every other readout is a
sum over tokens with weights w that no gain changes (J of them per token, one for each head of an
attention pooling),

    y = Σ_j M_j diag(γ) (I − 11ᵀ/D) Σ_t w_jt h_t + constants,

so that each unit's contribution is the same sum over what it wrote, and what follows `method.md`
holds with ẑ = [Σ_t w_jt z_t for each j ; Σ_t w_jt for each j], J (e + 1) numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

READOUTS = ("own", "mean", "patches")

Where = int | Tensor | None
"""Where in a call a readout looks: a token's index, that of each sample (B,), a mask (B, T)."""


def float64(tensor: Tensor) -> Tensor:
    """Detach and cast to float64, on the CPU where the tensor's device has none."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)


def inverse_sigma(stream: Tensor, eps: float) -> Tensor:
    """1/σ with σ = sqrt(var(h) + eps) over the last dimension, in float32 or better."""
    stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return (stream.var(dim=-1, correction=0) + eps).rsqrt()


def token_of(tensor: Tensor, token: Where) -> Tensor:
    """One token (B, D) of (B, T, D), the same or each sample's own; (B, D) stays as it is."""
    if tensor.ndim != 3:
        return tensor
    if isinstance(token, Tensor):
        return tensor[torch.arange(len(tensor), device=tensor.device), token.to(tensor.device)]
    return tensor[:, token or 0]


@dataclass(frozen=True)
class Pooler:
    """The MLP after a pooling: one more unit, which writes to the readout itself."""

    mlp: nn.Module
    last: nn.Linear  # its last linear map


@dataclass(frozen=True)
class Readout:
    """One token after the final LayerNorm, and what every other readout says of itself.

    `locate` knows what a call of the tower says, `weights` and `constant` what one of the last
    module does; `read` and `write` go between tokens and readout; `maps`, `bias` and `constant_map`
    are the linear algebra, in float64, with P (d, D) the projection's weight or the identity.
    """

    token: int = 0
    name: str | None = None  # None: the model's own, else that of `READOUTS` which was asked for
    end: nn.Module | None = None  # where the tokens are pooled; None: the final norm is the last
    pooler: Pooler | None = None
    count: int = 1  # J, how many weights each token has

    # whether what was seen of tokens is summed with their weights, and whether of all tokens
    weighted = False
    all_tokens = False

    def locate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Where:
        """Where a call of the tower is read."""
        return self.token

    def holds(self, output: Tensor) -> bool:
        """Whether an output of the last module holds the readout: it may run for others, too."""
        return True

    def read(self, tokens: Tensor, where: Where, dtype: torch.dtype | None = None) -> Tensor:
        """The readout (B, d) in normed tokens (B, T, d), or (B, d) where it was picked already.

        What is computed of several tokens is so in `dtype`; None their own.
        """
        return token_of(tokens, where)

    def write(self, tokens: Tensor, base: Tensor, adapted: Tensor, where: Where) -> Tensor:
        """All tokens (B, T, d) such that `adapted` (B, d) is read where `base` was."""
        here = torch.arange(tokens.shape[1], device=tokens.device)
        index = where if isinstance(where, Tensor) else torch.tensor(where or 0)
        chosen = here == (index.to(here.device) % tokens.shape[1]).view(-1, 1)  # (B or 1, T)
        return torch.where(chosen[:, :, None], adapted.to(tokens.dtype)[:, None], tokens)

    def ends(self, args: tuple[Any, ...]) -> bool:
        """Whether a call of the last module is the one that the readout comes from."""
        return True

    def weights(self, stream: Tensor, where: Where, module: Any, args: Any, kwargs: Any) -> Tensor:
        """The weights of tokens but for their 1/σ: (1 or B, J, T), in float32 or better.

        The stream h is (B, T, D), or (B, 1, D) of one token; `where` is as `locate` found it; the
        last module, which in a replica is another one than `end`, comes with its call.
        """
        return torch.ones(1, 1, 1, device=stream.device)

    def constant(self, weights: Tensor) -> Tensor | None:
        """What `constant_map` is multiplied with in each sample (B,), from its weights."""
        return None

    def maps(self, output: Tensor) -> list[Tensor]:
        """M_j (d, D) for each of the J weights, of P."""
        return [output]

    def bias(self, output: Tensor, beta: Tensor) -> Tensor:
        """What is the same for all samples (d,), of P and the final norm's β (D,)."""
        return output @ beta

    def constant_map(self, output: Tensor) -> Tensor | None:
        """What no unit writes and is not the same for all samples, but for `constant`: (d,)."""
        return None


FIRST_TOKEN = Readout()


@dataclass(frozen=True)
class EndToken(Readout):
    """Where CLIP's text towers read: the first `token_id`; None the highest token of all."""

    token_id: int | None = None

    def locate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Find the token of each sample (B,) in the `input_ids` (B, T) of the tower's call."""
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        ids = ids.view(-1, ids.shape[-1])
        chosen = ids if self.token_id is None else (ids == self.token_id)
        return chosen.int().argmax(dim=-1)


@dataclass(frozen=True)
class Mean(Readout):
    """The mean of tokens, `first` to before `end_before`, after the final LayerNorm of each.

    Padding does not count: a readout is that of one sample, however much others pad it.
    """

    name: str | None = "mean"
    first: int = 0
    end_before: int | None = None  # None: to the last
    mask: str | None = None  # the tower's second input, nonzero where a token is no padding
    weighted = all_tokens = True

    def locate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Find the mask (B, T), if there is one."""
        if self.mask is None:
            return None
        found: Tensor | None = kwargs.get(self.mask)
        return args[1] if found is None and len(args) > 1 else found

    def holds(self, output: Tensor) -> bool:
        """The final norm may run once more, for one token alone."""
        return output.ndim == 3

    def read(self, tokens: Tensor, where: Where, dtype: torch.dtype | None = None) -> Tensor:
        """Take the mean (B, d)."""
        tokens = tokens if dtype is None else tokens.to(dtype)
        if where is None:
            return tokens[:, self.first : self.end_before].mean(1)
        inside = self._inside(tokens, where)
        zeroed = tokens.masked_fill(~inside[:, :, None], 0)
        # a sum of float16 may be beyond what float16 holds, where the mean is not
        wide = torch.promote_types(tokens.dtype, torch.float32)
        return (zeroed.sum(1, dtype=wide) / inside.sum(1, keepdim=True)).to(tokens.dtype)

    def write(self, tokens: Tensor, base: Tensor, adapted: Tensor, where: Where) -> Tensor:
        """Each token moves by what the mean is to move by."""
        moved = (tokens + (adapted - base)[:, None]).to(tokens.dtype)
        return torch.where(self._inside(tokens, where)[:, :, None], moved, tokens)

    def weights(self, stream: Tensor, where: Where, module: Any, args: Any, kwargs: Any) -> Tensor:
        """Each token's share in the mean: (1 or B, 1, T)."""
        inside = self._inside(stream, where).to(torch.promote_types(stream.dtype, torch.float32))
        return (inside / inside.sum(1, keepdim=True))[:, None]

    def _inside(self, tokens: Tensor, where: Any) -> Tensor:
        """Which of the tokens (B, T, ...) the mean is taken of: (1 or B, T)."""
        here = torch.arange(tokens.shape[1], device=tokens.device)[None]
        chosen = here >= self.first
        if self.end_before is not None:
            chosen = chosen & (here < self.end_before)
        return chosen if where is None else chosen & (where.to(tokens.device) != 0)
