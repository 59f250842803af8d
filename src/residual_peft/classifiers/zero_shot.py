"""Class names and prompt templates -> class embeddings -> logits, loss and predictions.

A `ZeroShotClassifier` is a model with W_text (C, d) beside it. Names, templates and embeddings are
stored in the adapter's directory, so that one call brings all of it back. What it does lies in
modules of its own: logits and loss (`cosines`), the class head (`headed`), predictions and sets of
classes (`predicting`), another head without the old images (`changeable`), files
(`saving`).
"""

import os
import tempfile
from collections.abc import Iterable
from copy import copy
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.class_names import check_class_names, check_templates
from ..data.labels import labelling_of
from ..errors import ResiDualError
from ..hub.directories import push_directory
from ..hub.facts import Facts
from ..towers.registry import base_model
from ..tuner.state import ordinary
from . import saving
from .backbones import has_text
from .changeable import ChangeableClassifier
from .class_means import class_means
from .cosines import USUAL_LOGIT_SCALE as USUAL_LOGIT_SCALE
from .cosines import logit_bias_of, logit_scale_of
from .heads.blend import blend
from .predictions import Prediction as Prediction
from .prompts import DEFAULT_TEMPLATES, embed_classes
from .trained_head import HEAD_BYTES


class ZeroShotClassifier(ChangeableClassifier):
    """A model whose readout is compared with one embedding per class.

    Attributes:
        model: the (adapted) model.
        class_names: C names.
        templates: the prompt templates that they were put in; empty when unknown.
        class_embeddings: W_text (C, d), rows of unit norm.
        logit_scale: the factor of the cosine.
        image_processor: what turns images into pixel values; needed by `predict` only.
        multi_label: whether an image may have several labels, or none: every class has a sigmoid of
            its own in place of the softmax over all.
        logit_bias: what is added to every logit. A sigmoid needs one, since cosines of images and
            texts are far from 0; a fit with several labels sets it, and `fit_bias` does without.
        split: how the images of its fit were shared out; None without a fit, or where not known.
        fitted_on: digests (`image_digest`) of the images that it was trained or chosen on; may be
            empty. Saved under `run/`, which is never pushed.
        statistics: the sums that its class head can be changed by; None where none were kept. Saved
            under `run/`, too; see `KeptStatistics` for their size and what they reveal.
        head: a class head, which decides between the first of the classes; None where texts and
            gains do alone. `logits` and `loss` are without it, since they train the gains.
        thresholds: with several labels per image, the logit from which on one has a class (C,);
            None where that is 0, a probability of one half, for all.
        without: the ridge's fits without each part of its images, which `sets` by "jackknife+" ask;
            None where the fit kept none. Saved under `run/`, too.
        held_out: −log p of the right class of the images of `calibrate`, sorted (n,); None without
            any, and where head, classes or gains have changed since.
    """

    @classmethod
    def from_text(
        cls,
        model: nn.Module,
        tokenizer: Any,
        class_names: Iterable[str],
        templates: Iterable[str] = DEFAULT_TEMPLATES,
        *,
        text_model: nn.Module | None = None,
        logit_scale: float | None = None,
        image_processor: Any = None,
        multi_label: bool = False,
        logit_bias: float | None = None,
        batch_size: int = 256,
    ) -> "ZeroShotClassifier":
        """Classify with the embeddings of class names put in prompt templates.

        Args:
            model: the image tower, or a dual encoder; adapted or not.
            tokenizer: the text tower's tokenizer, or a processor (its image processor is used too).
            class_names: one name per class, in the order of the labels.
            templates: texts with `{}` where the name goes.
            text_model: the text tower, where `model` has none.
            logit_scale: factor of the cosine; the dual encoder's own when None, else 100.
            image_processor: for `predict`.
            multi_label: whether an image may have several labels.
            logit_bias: what is added to every logit; None the dual encoder's own where it has one
                and an image may have several labels, else 0: a softmax cancels it.
            batch_size: prompts per forward pass.

        Raises:
            ResiDualError: as `embed_classes`; no text tower; towers of different width.
        """
        text_model = model if text_model is None else text_model
        if not has_text(text_model):
            raise ResiDualError(
                f"{type(base_model(text_model)).__name__} has no text tower to embed class names "
                "with; pass text_model=CLIPTextModelWithProjection.from_pretrained(...)."
            )
        if logit_scale is None:
            logit_scale = logit_scale_of(model, text_model)
        if logit_bias is None:
            logit_bias = labelling_of(multi_label).bias(lambda: logit_bias_of(model, text_model))
        names, templates = check_class_names(class_names), check_templates(templates)
        embeddings = embed_classes(text_model, tokenizer, names, templates, batch_size=batch_size)
        return cls(
            model,
            names,
            embeddings,
            logit_scale=logit_scale,
            templates=templates,
            image_processor=image_processor or getattr(tokenizer, "image_processor", None),
            multi_label=multi_label,
            logit_bias=logit_bias,
        )

    @classmethod
    def from_class_means(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        class_names: Iterable[str],
        *,
        logit_scale: float | None = None,
        image_processor: Any = None,
    ) -> "ZeroShotClassifier":
        """Take each class's mean readout for its embedding, where there is no text tower.

        Args:
            model: the (adapted) model, whose readouts as they are now count.
            batches: of labelled training images, as for `class_means`.
            class_names: C names, in the order of the labels.
            logit_scale: factor of the cosine; the model's own when None, else 100.
            image_processor: for `predict`.

        Raises:
            ResiDualError: as `class_means`.
        """
        names = check_class_names(class_names)
        means = class_means(model, batches, names)
        return cls(model, names, means, logit_scale=logit_scale, image_processor=image_processor)

    def with_images(
        self, readout: Tensor, labels: Tensor, *, share: float | None = None
    ) -> "ZeroShotClassifier":
        """The same with class embeddings `normalize((1 − β) text + β means of images)`.

        Where prompts fit the images badly, or say nothing, the images of a class say what it is;
        gains stand on either. Adapter, scale and templates are shared with this one; there is no
        class head, and no bias.

        Args:
            readout: of the unadapted model (N, d), such as `Readouts.readout`.
            labels: (N,), of every class.
            share: β; None for the one that tells left-out images apart best.

        Raises:
            ResiDualError: several labels per image, or a class without images.
        """
        found = blend(self.class_embeddings, readout, labels, len(self.class_names), share=share)
        other = copy(self)
        other._head, other.logit_bias = None, 0.0
        other.class_embeddings = ordinary(found.embeddings.to(self.class_embeddings))
        return other

    def to(self, device: torch.device | str) -> "ZeroShotClassifier":
        """Move model and class embeddings; returns itself."""
        self.model.to(device)
        self.class_embeddings = ordinary(self.class_embeddings.to(device))
        self._head = None if self._head is None else self._head.to(self.device)
        return self

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        *,
        card: Facts | None = None,
        location: str | None = None,
        head_bytes: int | None = HEAD_BYTES,
    ) -> Path:
        """Write adapter, classes, image processor and model card, whole or not at all.

        Args:
            directory: made if missing. A README.md there that somebody wrote or changed is kept.
            card: what the model card says beyond what the adapter knows: dataset, metrics, licence.
            location: what the card's example loads from; the directory's name when None.
            head_bytes: what a class head may take; a larger one is saved in fewer bits or of low
                rank, with a warning, since it is another head by that much, and held-out images
                would have to calibrate it anew; of low rank it keeps nothing of left-out ones
                either. None for no bound.

        Returns:
            Where it lies: `directory` as a path, with `~` as the user's home.

        Raises:
            ResiDualError: `head_bytes` that is no whole number, or fewer than the head takes at
                rank 1; a file in the directory's place, or a disk that does not take it.
        """
        if not isinstance(head_bytes, Integral | None):
            raise ResiDualError(
                f"wanted head_bytes as a whole number, or None for no bound, got {head_bytes!r}."
            )
        return saving.save(self, directory, card, location, head_bytes)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: Facts | None = None,
        commit_message: str = "Upload classifier",
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Any:
        """Upload what `save_pretrained` writes, in one commit.

        Args:
            repo_id: "owner/name", or a name in the token's own namespace; made when missing.
            card: as for `save_pretrained`.
            commit_message: the title of the commit.
            private: True makes a private repository, and refuses a public one that is there.
            revision: the branch to push to, made when missing; None for the main one.
            token: of an account that may write there; the one that is logged in when None.

        Returns:
            The Hub client's `CommitInfo`.

        Raises:
            ResiDualError: no right to write there, or the connection broke off; names the id.
        """
        staying = copy(self)
        # these would only be written to be left out
        staying._statistics = staying._without = None
        with tempfile.TemporaryDirectory() as folder:
            staying.save_pretrained(folder, card=card, location=repo_id)
            return push_directory(
                folder,
                repo_id,
                commit_message=commit_message,
                private=private,
                revision=revision,
                token=token,
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        device: torch.device | str | None = None,
        is_trainable: bool = False,
        revision: str | None = None,
        token: str | None = None,
    ) -> "ZeroShotClassifier":
        """Load base model, adapter, classes and image processor, ready to predict.

        Args:
            name_or_path: a directory that `save_pretrained` wrote, or a Hub id.
            model: the base model, where it is in hand already; else it is loaded by its name, in
                the dtype that the adapter was made with.
            device: where to.
            is_trainable: whether the gains are to be trained further.
            revision: branch, tag or commit of the adapter on the Hub.
            token: for private repositories.

        Raises:
            ResiDualError: a directory, file or base model is missing, cut short or of another kind.
        """
        return saving.load(cls, name_or_path, model, device, is_trainable, revision, token)
