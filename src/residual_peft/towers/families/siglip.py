"""SigLIP and SigLIP 2: an attention pools the tokens of images; of texts the last is read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..anatomy import TowerAnatomy
from ..readouts import Mean, Pooler, Readout, Where
from ..registry import register_architecture, unwrapped
from .parts import encoder_tower, nested, part_at, text_tower


@dataclass(frozen=True)
class AttentionPooling(Readout):
    """One query attends over the normed tokens: J heads, whose weights are frozen per image.

    pooled = Σ_j W_o,j (W_v,j Σ_t α_jt LN(h_t) + b_v,j) + b_o, and y = pooled + MLP(LN(pooled)): the
    pooling MLP is a unit of its own, whose contribution is its output. `end` is called with the
    normed tokens and, where there is padding, their mask; no projection follows.
    """

    weighted = all_tokens = True

    @property
    def attention(self) -> nn.MultiheadAttention:
        """The attention that pools."""
        head: Any = self.end
        found: nn.MultiheadAttention = head.attention
        return found

    @property
    def count(self) -> int:  # type: ignore[override]
        """J, its number of heads."""
        return int(self.attention.num_heads)

    def weights(self, stream: Tensor, where: Where, module: Any, args: Any, kwargs: Any) -> Tensor:
        """α (B, J, T) of one call of the head."""
        hidden: Tensor = args[0] if args else kwargs["hidden_state"]
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        weight = module.attention.in_proj_weight.to(dtype)
        bias = module.attention.in_proj_bias.to(dtype)
        width = weight.shape[1]
        query = functional.linear(module.probe[0].to(dtype), weight[:width], bias[:width])
        keys = functional.linear(
            hidden.to(dtype), weight[width : 2 * width], bias[width : 2 * width]
        )
        query, keys = query.unflatten(-1, (self.count, -1)), keys.unflatten(-1, (self.count, -1))
        scores = torch.einsum("je,btje->bjt", query[0] * query.shape[-1] ** -0.5, keys)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(dtype).min)
        return scores.softmax(dim=-1)

    def maps(self, output: Tensor) -> list[Tensor]:
        """W_o,j W_v,j (D, D) of each head."""
        attention = self.attention
        width = attention.embed_dim
        value = attention.in_proj_weight.detach().double()[2 * width :]
        mixed = attention.out_proj.weight.detach().double()
        size = width // self.count
        parts = zip(mixed.split(size, dim=1), value.split(size, dim=0), strict=True)
        return [out @ inside for out, inside in parts]

    def bias(self, output: Tensor, beta: Tensor) -> Tensor:
        """Σ_j W_o,j W_v,j β + W_o b_v + b_o: weights of attention add up to one."""
        attention = self.attention
        value = attention.in_proj_bias.detach().double()[2 * attention.embed_dim :]
        own = attention.out_proj.weight.detach().double() @ value
        own = own + attention.out_proj.bias.detach().double()
        return torch.stack(self.maps(output)).sum(0) @ beta + own


@register_architecture("SiglipModel", "SiglipVisionModel", "Siglip2Model", "Siglip2VisionModel")
def _image(model: Any) -> TowerAnatomy:
    """Attention pooling over the normed tokens; without it, their mean."""
    tower = nested(model, "vision_model")
    flexible = type(model).__name__.startswith("Siglip2")
    mask = "pixel_attention_mask" if flexible else None
    readout: Readout = Mean(mask=mask)
    if getattr(tower, "use_head", True):
        head = unwrapped(tower.head)
        readout = AttentionPooling(
            end=head, pooler=Pooler(unwrapped(head.mlp), part_at(head, "mlp.fc2"))
        )
    return encoder_tower(
        model,
        tower,
        tower.post_layernorm,
        None,
        readout,
        reads_tokens=readout.end is None,
        inputs=("pixel_values", *(("pixel_attention_mask", "spatial_shapes") if flexible else ())),
        prefix_tokens=0,
        mask=mask,
    )


@register_architecture(
    "SiglipModel", "SiglipTextModel", "Siglip2Model", "Siglip2TextModel", side="text"
)
def _text(model: Any) -> TowerAnatomy:
    """The last token, whatever it is."""
    tower = nested(model, "text_model")
    return text_tower(model, tower, tower.head, Readout(token=-1))
