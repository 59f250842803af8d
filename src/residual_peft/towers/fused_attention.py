"""What the heads of a fused attention hand to its output projection, at one token per sample.

`nn.MultiheadAttention` computes with the weight of its output projection and never calls it, so
that no hook sees its input. It is computed once more from what the attention itself was given. One
query needs neither the keys nor the values of all tokens,

    softmax_t(q · (W_k x_t + b_k)) = softmax_t((W_kᵀ q) · x_t)
    Σ_t α_t (W_v x_t + b_v) = W_v (Σ_t α_t x_t) + b_v,

which costs a hundredth of the tower's forward pass.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ResiDualError


def check_attention(name: str, attention: nn.MultiheadAttention) -> None:
    """Refuse an attention that computes more than softmax(q k) v of its inputs."""
    plain = (
        type(attention) is nn.MultiheadAttention
        and attention._qkv_same_embed_dim
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not attention.dropout
    )
    if not plain:
        raise ResiDualError(
            f"{name} is a {type(attention).__name__} with parts of its own; wanted a plain "
            "nn.MultiheadAttention without dropout, add_bias_kv, add_zero_attn, kdim and vdim."
        )


@torch.no_grad()
def heads_at(
    attention: nn.MultiheadAttention,
    token: int | Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """z (B, H·e), detached, in float32 or better: a lower precision would round where none does.

    `token` is the readout token, or that of each sample (B,); the rest is what the forward of the
    attention, whose dropout is off, was called with. In `key_padding_mask` (B, S) and `attn_mask`,
    (T, S) or (B·H, T, S), True hides a token, and floats are added; `need_weights` changes nothing.
    """
    if not attention.batch_first:
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    dtype = torch.promote_types(query.dtype, torch.float32)
    # not len(query): a tracer, as torch.export, would take it for a constant
    heads, batch = attention.num_heads, query.shape[0]
    rows = torch.arange(batch, device=query.device)
    index: Any = rows.new_full((batch,), token or 0) if not isinstance(token, Tensor) else token
    index = index.to(query.device)
    with torch.autocast(query.device.type, enabled=False):  # it would round the products
        weights = attention.in_proj_weight.to(dtype).chunk(3)
        biases: Any = (None, None, None)
        if attention.in_proj_bias is not None:
            biases = attention.in_proj_bias.to(dtype).chunk(3)
        asked = functional.linear(query[rows, index].to(dtype), weights[0], biases[0])
        asked = asked.unflatten(1, (heads, -1)) * (asked.shape[1] // heads) ** -0.5  # (B, H, e)
        # b_k adds the same to the scores of all tokens
        through = torch.einsum("bhe,hed->bhd", asked, weights[1].unflatten(0, (heads, -1)))
        scores = through @ key.to(dtype).transpose(1, 2)  # (B, H, S)
        if attn_mask is not None:
            mask = _added(attn_mask, dtype)
            if mask.ndim == 2:
                scores = scores + mask[index][:, None]
            else:
                scores = scores + mask.unflatten(0, (batch, heads))[rows, :, index]
        if key_padding_mask is not None:
            scores = scores + _added(key_padding_mask, dtype)[:, None]
        seen = scores.softmax(-1) @ value.to(dtype)
        found = torch.einsum("bhd,hed->bhe", seen, weights[2].unflatten(0, (heads, -1))).flatten(1)
        return found if biases[2] is None else found + biases[2]


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as it is added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
