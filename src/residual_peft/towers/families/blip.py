"""BLIP: the class token, normed once for retrieval and twice for `BlipModel`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..anatomy import TowerAnatomy, unwrapped
from ..readouts import FIRST_TOKEN, Readout, Where, float64, inverse_sigma
from ..registry import UNSUITED, register_architecture
from .parts import POST_NORM, encoder_tower

CLASSES = ("BlipForImageTextRetrieval", "BlipModel")
UNSUITED["text"].update(dict.fromkeys(CLASSES, POST_NORM))


@dataclass(frozen=True)
class SecondNorm(Readout):
    """The final LayerNorm runs once more over the normed token: J = 1.

    LN(LN(h)): with σ₂ of LN(h) frozen as well, the weight is 1/(σ₁ σ₂), and what the first norm's β
    adds is P diag(γ) (I − 11ᵀ/D) β / σ₂: not of any unit, and not the same for all samples, so that
    it counts as part of `embed`.
    """

    norm: Any = None  # an nn.LayerNorm
    weighted = True

    def ends(self, args: tuple[Any, ...]) -> bool:
        """The first of the two runs is over all tokens."""
        return bool(args[0].ndim != 3)

    def weights(self, stream: Tensor, where: Where, module: Any, args: Any, kwargs: Any) -> Tensor:
        """1/σ₂: (B, 1, 1)."""
        return inverse_sigma(args[0], float(self.norm.eps))[:, None, None]

    def constant(self, weights: Tensor) -> Tensor:
        """1/σ₂ again: (B,)."""
        return weights[:, 0, 0]

    def maps(self, output: Tensor) -> list[Tensor]:
        """P diag(γ) (I − 11ᵀ/D)."""
        return [output @ self._map().to(output.device)]

    def constant_map(self, output: Tensor) -> Tensor:
        """What the first norm's β comes to in the second, before 1/σ₂."""
        return output @ (self._map() @ float64(self.norm.bias)).to(output.device)

    def _map(self) -> Tensor:
        weight: Tensor = float64(self.norm.weight)
        return torch.diag(weight) - weight[:, None] / len(weight)


@register_architecture(*CLASSES)
def _image(model: Any) -> TowerAnatomy:
    tower, norm = model.vision_model, unwrapped(model.vision_model.post_layernorm)
    if hasattr(model, "vision_proj"):
        return encoder_tower(
            model, tower, norm, model.vision_proj, FIRST_TOKEN, read=_retrieval, prefix_tokens=1
        )
    return encoder_tower(model, tower, norm, model.visual_projection, SecondNorm(norm=norm))


def _retrieval(anatomy: TowerAnatomy, arguments: Mapping[str, Any]) -> Tensor:
    """The readout that is compared with texts: its class has no `get_image_features`."""
    model: Any = anatomy.model
    tokens = model.vision_model(**arguments, return_dict=True).last_hidden_state
    readout: Tensor = model.vision_proj(tokens[:, 0, :])
    return readout
