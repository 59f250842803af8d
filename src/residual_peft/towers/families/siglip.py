"""SigLIP and SigLIP 2: an attention pools the tokens of images; of texts the last is read."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..anatomy import TowerAnatomy, unwrapped
from ..readouts import Mean, Pooler, Readout, Where, float64
from ..registry import register_architecture
from .parts import encoder_tower, nested, part_at, text_tower


@dataclass(frozen=True)
class AttentionPooling(Readout):
    """One query attends over the normed tokens: J heads, whose weights are frozen per image.

    pooled = Σ_j W_o,j (W_v,j Σ_t α_jt LN(h_t) + b_v,j) + b_o, and y = pooled + MLP(LN(pooled)): the
    pooling MLP is a unit of its own, whose contribution is its output. `end` is called with the
    normed tokens and, where there is padding, their mask; no projection follows.
    """

    weighted = all_tokens = True

    def weights(self, stream: Tensor, where: Where, module: Any, args: Any, kwargs: Any) -> Tensor:
        """α (B, J, T) of one call of the head."""
        hidden: Tensor = args[0] if args else kwargs["hidden_state"]
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        weights = module.attention.in_proj_weight.to(dtype).chunk(3)
        biases = module.attention.in_proj_bias.to(dtype).chunk(3)
        query = functional.linear(module.probe[0].to(dtype), weights[0], biases[0])
        keys = functional.linear(hidden.to(dtype), weights[1], biases[1])
        query, keys = query.unflatten(-1, (self.count, -1)), keys.unflatten(-1, (self.count, -1))
        scores = torch.einsum("je,btje->bjt", query[0] * query.shape[-1] ** -0.5, keys)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(dtype).min)
        return scores.softmax(dim=-1)

    def maps(self, output: Tensor) -> list[Tensor]:
        """W_o,j W_v,j (D, D) of each head."""
        mixing, value, _ = self._output()
        parts = zip(mixing.chunk(self.count, dim=1), value.chunk(self.count), strict=True)
        return [out @ inside for out, inside in parts]

    def bias(self, output: Tensor, beta: Tensor) -> Tensor:
        """Σ_j W_o,j W_v,j β + W_o b_v + b_o: weights of attention add up to one."""
        return torch.stack(self.maps(output)).sum(0) @ beta + self._output()[2]

    def _output(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_o, W_v and W_o b_v + b_o."""
        attention = cast(Any, self.end).attention
        mixing = float64(attention.out_proj.weight)
        value = float64(attention.in_proj_weight).chunk(3)[2]
        shift = float64(attention.in_proj_bias).chunk(3)[2]
        return mixing, value, mixing @ shift + float64(attention.out_proj.bias)


@register_architecture(
    "SiglipModel",
    "SiglipVisionModel",
    "SiglipForImageClassification",
    "Siglip2Model",
    "Siglip2VisionModel",
    "Siglip2ForImageClassification",
)
def _image(model: Any) -> TowerAnatomy:
    """Attention pooling over the normed tokens; their mean without it, or where that is classified.

    A model for image classification has the pooling, and goes past it.
    """
    tower = nested(model, "vision_model")
    flexible = type(model).__name__.startswith("Siglip2")
    mask = "pixel_attention_mask" if flexible else None
    readout: Readout = Mean(mask=mask)
    outside: tuple[Any, ...] = ()
    head = unwrapped(tower.head) if getattr(tower, "use_head", True) else None
    if head is not None and hasattr(model, "classifier"):
        outside = (head,)
    elif head is not None:
        pooler = Pooler(unwrapped(head.mlp), part_at(head, "mlp.fc2"))
        readout = AttentionPooling(end=head, pooler=pooler, count=head.attention.num_heads)
    return encoder_tower(
        model,
        tower,
        tower.post_layernorm,
        None,
        readout,
        reads_tokens=readout.end is None,
        outside=outside,
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
