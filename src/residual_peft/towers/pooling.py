"""How a readout is made of tokens, given what is frozen per sample: weights, then linear maps.

A readout token is the simplest case: y = P LN(h) + b with σ of that token. Every other pooling here
is a sum over tokens with weights w that no gain changes (J of them per token, one for each head of
an attention pooling),

    y = Σ_j M_j diag(γ) (I − 11ᵀ/D) Σ_t w_jt h_t + constants,

so that each unit's contribution is the same sum over what it wrote, and what follows `method.md`
holds with ẑ = [Σ_t w_jt z_t for each j ; Σ_t w_jt for each j], J (e + 1) numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def inverse_sigma(stream: Tensor, eps: float) -> Tensor:
    """1/σ with σ = sqrt(var(h) + eps) over the last dimension, in float32 or better."""
    stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return (stream.var(dim=-1, correction=0) + eps).rsqrt()


@dataclass(frozen=True)
class FirstToken:
    """The index of the readout token that does not depend on the sample."""

    index: int = 0

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Give the index, whatever the tower is called with."""
        return self.index


@dataclass(frozen=True)
class EndToken:
    """Where CLIP's text towers read: the first `token_id`; None the highest token of all."""

    token_id: int | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Find the token of each sample (B,) in the `input_ids` (B, T) of the tower's call."""
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        ids = ids.view(-1, ids.shape[-1])
        chosen = ids if self.token_id is None else (ids == self.token_id)
        return chosen.int().argmax(dim=-1)


@dataclass(frozen=True)
class MeanPooling:
    """The mean of the tokens from `first` on, after the final LayerNorm of each: J = 1.

    Padding does not count: a readout is that of one sample, however much others pad it.
    """

    first: int = 0
    mask: str | None = None  # the tower's second input, nonzero where a token is no padding
    count = 1

    def real(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Find the mask (B, T) in a call of the tower, if it has one."""
        if self.mask is None:
            return None
        found: Tensor | None = kwargs.get(self.mask)
        return args[1] if found is None and len(args) > 1 else found

    def inside(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Which of the tokens (B, T, ...) the mean is taken of: (1 or B, T)."""
        chosen = (torch.arange(tokens.shape[1], device=tokens.device) >= self.first)[None]
        return chosen if real is None else chosen & (real.to(tokens.device) != 0)

    def mean(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """The mean (B, d) of tokens (B, T, d)."""
        if real is None:
            return tokens[:, self.first :].mean(1)
        inside = self.inside(tokens, real)
        zeroed = tokens.masked_fill(~inside[:, :, None], 0)
        return zeroed.sum(1) / inside.sum(1, keepdim=True).to(tokens.dtype)

    def shares(self, stream: Tensor, real: Tensor | None) -> Tensor:
        """Each token's share in the mean: (1 or B, 1, T)."""
        inside = self.inside(stream, real).to(torch.promote_types(stream.dtype, torch.float32))
        return (inside / inside.sum(1, keepdim=True))[:, None]


@dataclass(frozen=True)
class AttentionPooling:
    """One query attends over the normed tokens (SigLIP's head): J heads, weights frozen per image.

    pooled = Σ_j W_o,j (W_v,j Σ_t α_jt LN(h_t) + b_v,j) + b_o, and y = pooled + MLP(LN(pooled)): the
    pooling MLP is a unit of its own, whose contribution is its output.
    """

    head: Any  # called with the normed tokens and, where there is padding, their mask
    mlp: nn.Module
    last: nn.Linear  # the MLP's last linear map

    @property
    def attention(self) -> nn.MultiheadAttention:
        """The attention that pools."""
        found: nn.MultiheadAttention = self.head.attention
        return found

    @property
    def count(self) -> int:
        """J, its number of heads."""
        return int(self.attention.num_heads)

    def weights(self, args: Any, kwargs: Any) -> Tensor:
        """α (B, J, T) of one call of the head, in float32 or better."""
        hidden: Tensor = args[0] if args else kwargs["hidden_state"]
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        attention = self.attention
        weight, bias = attention.in_proj_weight.to(dtype), attention.in_proj_bias.to(dtype)
        width = weight.shape[1]
        query = functional.linear(self.head.probe[0].to(dtype), weight[:width], bias[:width])
        keys = functional.linear(
            hidden.to(dtype), weight[width : 2 * width], bias[width : 2 * width]
        )
        query, keys = query.unflatten(-1, (self.count, -1)), keys.unflatten(-1, (self.count, -1))
        scores = torch.einsum("je,btje->bjt", query[0] * query.shape[-1] ** -0.5, keys)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(dtype).min)
        return scores.softmax(dim=-1)

    def maps(self) -> list[Tensor]:
        """W_o,j W_v,j (D, D) of each head, float64."""
        attention = self.attention
        width = attention.embed_dim
        value = attention.in_proj_weight.detach().double()[2 * width :]
        output = attention.out_proj.weight.detach().double()
        size = width // self.count
        parts = zip(output.split(size, dim=1), value.split(size, dim=0), strict=True)
        return [out @ inside for out, inside in parts]

    def bias(self) -> Tensor:
        """W_o b_v + b_o (D,), float64: weights of attention add up to one."""
        attention = self.attention
        value = attention.in_proj_bias.detach().double()[2 * attention.embed_dim :]
        return attention.out_proj.weight.detach().double() @ value + (
            attention.out_proj.bias.detach().double()
        )


@dataclass(frozen=True)
class SecondNorm:
    """The final LayerNorm runs once more over the normed token, as BlipModel has it: J = 1.

    LN(LN(h)): with σ₂ of LN(h) frozen as well, the weight is 1/(σ₁ σ₂), and what the first norm's β
    adds is P diag(γ) (I − 11ᵀ/D) β / σ₂: not of any unit, and not the same for all samples, so that
    it counts as part of `embed`.
    """

    norm: nn.LayerNorm
    count = 1

    def map(self) -> Tensor:
        """Compute diag(γ) (I − 11ᵀ/D) (D, D), float64."""
        weight = self.norm.weight.detach().double()
        matrix = torch.diag(weight)
        return matrix - weight[:, None] / len(weight)

    def shift(self) -> Tensor:
        """What the first norm's β comes to in the second, before 1/σ₂: (D,), float64."""
        return self.map() @ self.norm.bias.detach().double()


Pooling = MeanPooling | AttentionPooling | SecondNorm
