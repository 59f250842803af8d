"""Readouts beside class embeddings: logits, their loss, and the bias of sigmoids."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.class_names import check_class_names
from ..data.labels import Labelling, labelling_of
from ..data.provenance import SplitRecord
from ..errors import ResiDualError
from ..towers.registry import base_model, find_tower
from ..tuner.state import ordinary
from .outputs import readout_of

# CLIP's logit scale is learned and capped at 100, where OpenAI's and most other models end
USUAL_LOGIT_SCALE = 100.0
LARGEST_LOGIT_SCALE = 1e6


class CosineClassifier:
    """A model whose readout is compared with one embedding per class; see `ZeroShotClassifier`."""

    def __init__(
        self,
        model: nn.Module,
        class_names: Iterable[str],
        class_embeddings: Tensor,
        *,
        logit_scale: float | None = None,
        templates: Sequence[str] = (),
        image_processor: Any = None,
        multi_label: bool = False,
        logit_bias: float = 0.0,
    ) -> None:
        self.model: Any = model
        self.class_names = check_class_names(class_names)
        self.templates = tuple(templates)
        self.image_processor = image_processor
        self.logit_scale = logit_scale_of(model) if logit_scale is None else float(logit_scale)
        self.multi_label, self.logit_bias = bool(multi_label), float(logit_bias)
        self.split: SplitRecord | None = None
        self.fitted_on: tuple[str, ...] = ()
        if not math.isfinite(self.logit_bias):
            raise ResiDualError(f"wanted a finite logit_bias, got {logit_bias}.")
        if not 0 < self.logit_scale <= LARGEST_LOGIT_SCALE:
            raise ResiDualError(
                f"wanted a logit_scale above 0 and up to {LARGEST_LOGIT_SCALE:g}, got "
                f"{self.logit_scale}."
            )
        self.class_embeddings = ordinary(self._checked(class_embeddings).to(self.device))

    def _checked(self, class_embeddings: Tensor) -> Tensor:
        """Embeddings of these classes, of unit norm."""
        width = find_tower(self.model).readout_width
        if class_embeddings.shape != (len(self.class_names), width):
            raise ResiDualError(
                f"wanted class embeddings of shape {(len(self.class_names), width)}, one row "
                f"of the readout's width per class, got {tuple(class_embeddings.shape)}; the text "
                "tower must belong to this image tower."
            )
        if not class_embeddings.isfinite().all():
            raise ResiDualError("the class embeddings hold NaN or infinite values.")
        embeddings = class_embeddings.detach()
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        lengths = embeddings.norm(dim=-1, keepdim=True)
        if not (lengths.isfinite() & (lengths > 0)).all():
            raise ResiDualError(
                "wanted class embeddings with a direction, got one of length "
                f"{float(lengths.min()) or float(lengths.max())}."
            )
        if (lengths - 1).abs().max() > 1e-5:  # else they stay bit for bit what was saved
            embeddings = functional.normalize(embeddings, dim=-1)
        return embeddings

    @property
    def labelling(self) -> Labelling:
        """One label per image, or several."""
        return labelling_of(self.multi_label)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def logits(self, outputs: Any) -> Tensor:
        """logit_scale · normalize(y') · W_textᵀ + logit_bias, (B, C) in float32 or better.

        Args:
            outputs: readouts (B, d), normalized or not, or a model output that has them as
                `image_embeds`, without a projection as `pooler_output`, or, where the readout is
                one of the tower's tokens, in `last_hidden_state`.
        """
        cosines = self.scaled_cosines(outputs)
        return cosines + self.logit_bias if self.logit_bias else cosines

    def scaled_cosines(self, outputs: Any) -> Tensor:
        """The logits without their bias; arguments are those of `logits`."""
        readout = readout_of(outputs, self.model)
        readout = readout.to(torch.promote_types(readout.dtype, self.class_embeddings.dtype))
        weights = self.class_embeddings.to(readout.device, readout.dtype)
        return self.logit_scale * functional.normalize(readout, dim=-1) @ weights.T

    def loss(
        self,
        outputs: Any,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross-entropy of the logits; fits the Trainer's `compute_loss_func`.

        The mean over images; with `multi_label`, binary cross-entropy and the mean over images and
        classes. Either is the sum over the entries of `labels`, divided by their number.

        Args:
            outputs: as for `logits`.
            labels: (B,) from 0 to C - 1; with `multi_label` (B, C) zeros and ones of any dtype.
            num_items_in_batch: entries of all labels in the whole accumulated batch, as the Trainer
                counts them, where the sum is to be divided by that instead: images, or
                images times classes.
            label_smoothing: as in torch's `cross_entropy`; for one label per image alone. The
                Trainer leaves its own `label_smoothing_factor` to a `compute_loss_func`, which
                `trainer_kwargs` gives it.

        Raises:
            ResiDualError: no labels, or labels outside the classes (-1 and -100 included).
        """
        self.check_labels(labels)
        logits = self.scaled_cosines(outputs)
        loss = self.labelling.loss(
            logits,
            labels.to(logits.device),
            bias=self.logit_bias,
            smoothing=label_smoothing,
            reduction="mean" if num_items_in_batch is None else "sum",
        )
        if num_items_in_batch is None:
            return loss
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss / num_items_in_batch

    def check_labels(self, labels: Tensor | None) -> None:
        """Raise a ResiDualError unless every label belongs to a class.

        With `multi_label`, unless they are (B, C) zeros and ones.
        """
        if labels is None:
            raise ResiDualError(
                "wanted labels beside the images, got none; with the Trainer, set "
                "label_names=['labels'] and remove_unused_columns=False."
            )
        self.labelling.check(labels, len(self.class_names))

    @torch.no_grad()
    def fit_bias(self, outputs: Any, labels: Tensor) -> float:
        """Set the bias that suits labelled images best, the model as it is; returns it.

        For a classifier with `multi_label` before it is trained or used without a fit.

        Args:
            outputs: of all images, as for `logits`.
            labels: (N, C) zeros and ones.

        Raises:
            ResiDualError: a classifier for one label per image, or labels that do not suit it.
        """
        self.check_labels(labels)
        cosines = self.scaled_cosines(outputs)
        labels = labels.to(cosines.device)
        self.logit_bias = self.labelling.best_bias(cosines, labels, self.largest_bias)
        return self.logit_bias

    @property
    def largest_bias(self) -> float:
        """What a fitted bias stays below in size; cosines can ask for no more."""
        return 4 * self.logit_scale + 20


def logit_bias_of(*models: nn.Module) -> float:
    """That of the first dual encoder among models that has one, else 0."""
    bias = _first_tensor("logit_bias", models)
    return 0.0 if bias is None else float(bias)


def logit_scale_of(*models: nn.Module) -> float:
    """That of the first dual encoder among models, else the usual one."""
    scale = _first_tensor("logit_scale", models)
    return USUAL_LOGIT_SCALE if scale is None else float(scale.double().exp())


def _first_tensor(name: str, models: Sequence[nn.Module]) -> Tensor | None:
    found = (getattr(base_model(model), name, None) for model in models)
    return next((value.detach() for value in found if isinstance(value, Tensor)), None)
