"""Class names and prompt templates -> class embeddings -> logits, loss and predictions.

A `ZeroShotClassifier` is a model with W_text (C, d) beside it. Names, templates and embeddings are
stored in the adapter's directory, so that one call brings all of it back.
"""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional

from ..bases.reading import Seen, reading
from ..bases.rows import Rows
from ..data.class_names import check_class_names, check_templates
from ..data.images import ImageLike, load_image_processor
from ..data.inputs import Images, images_of
from ..data.labels import Labelling, labelling_of
from ..data.provenance import SplitRecord
from ..errors import ResiDualError
from ..hub.directories import CARD, push_directory
from ..hub.facts import Facts
from ..hub.files import atomic_directory, path_of
from ..towers.anatomy import TowerAnatomy
from ..towers.captures import Capture
from ..towers.registry import base_model, find_tower
from ..tuner import (
    adapted_tower,
    base_of,
    basis_digest,
    compose,
    coordinates_of,
    gains_of,
    readout_state,
)
from ..tuner.inference import ordinary
from ..tuner.snapshot import unchanged_if_refused
from . import updating
from .adapters import Adapters, load_adapters, saved_adapters, write_adapters
from .backbones import has_text
from .class_means import class_means
from .files import (
    ClassifierRecord,
    adapter_facts,
    is_ours,
    load_base,
    local_classifier,
    of_the_old,
    origin_of,
    read_classes,
    read_fitted_on,
    same_adapter,
    settings_of,
    write_card,
    write_classes,
    write_fitted_on,
)
from .heads.blend import blend
from .heads.conformal import PredictionSets
from .outputs import pixel_batches, readout_of
from .predictions import Prediction as Prediction
from .predictions import predictions_of
from .prompts import DEFAULT_TEMPLATES, embed_classes
from .trained_head import HEAD_BYTES, TrainedHead, check_head, embedding_features
from .updating import KeptStatistics

logger = logging.getLogger(__name__)

# CLIP's logit scale is learned and capped at 100, where OpenAI's and most other models end
USUAL_LOGIT_SCALE = 100.0
LARGEST_LOGIT_SCALE = 1e6


class ZeroShotClassifier:
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
    """

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
        self.logit_scale = _logit_scale(model) if logit_scale is None else float(logit_scale)
        self.multi_label, self.logit_bias = bool(multi_label), float(logit_bias)
        self.split: SplitRecord | None = None
        self.fitted_on: tuple[str, ...] = ()
        self._head: TrainedHead | None = None
        self._statistics: KeptStatistics | Callable[[], KeptStatistics] | None = None
        if not math.isfinite(self.logit_bias):
            raise ResiDualError(f"wanted a finite logit_bias, got {logit_bias}.")
        if not 0 < self.logit_scale <= LARGEST_LOGIT_SCALE:
            raise ResiDualError(
                f"wanted a logit_scale above 0 and up to {LARGEST_LOGIT_SCALE:g}, got "
                f"{self.logit_scale}."
            )
        width = find_tower(model).readout_width
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
        self.class_embeddings = ordinary(embeddings.to(self.device))

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
            logit_scale = _logit_scale(model, text_model)
        if logit_bias is None:
            logit_bias = labelling_of(multi_label).bias(lambda: _logit_bias(model, text_model))
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
        other._head = None
        other.class_embeddings = ordinary(found.embeddings.to(self.class_embeddings))
        return other

    @property
    def head(self) -> TrainedHead | None:
        """The class head, if there is one; setting it is `set_head`."""
        return self._head

    @head.setter
    def head(self, head: TrainedHead | None) -> None:
        self.set_head(head)

    def set_head(
        self,
        head: TrainedHead | None,
        adapter_name: str | None = None,
        *,
        statistics: KeptStatistics | None = None,
    ) -> None:
        """Let a class head decide between the first of the classes.

        Args:
            head: None for texts and gains alone.
            adapter_name: whose coordinates it reads; None for the active adapter.
            statistics: its very sums, where there are any; they are taken as they are.

        Raises:
            ResiDualError: it has more classes, or reads another number of features: it is of
                another basis, or the model has no such adapter.
        """
        if head is not None:
            check_head(head, len(self.class_names))
            columns = self.class_embeddings.shape[1]
            if head.features == "coordinates":
                columns = len(readout_state(self.model, adapter_name).directions)
            if len(head.head.mean) != columns:
                raise ResiDualError(
                    f"the class head reads {len(head.head.mean)} {head.features}, the model gives "
                    f"{columns}: it is of another basis, other units or another model."
                )
            head = head.to(self.device)
        self._head, self._statistics = head, statistics

    @property
    def statistics(self) -> KeptStatistics | None:
        """The sums of the class head's images, read from disk when they are first asked for.

        Another head has none of its own until they are set.
        """
        if callable(self._statistics):
            self._statistics = self._statistics()
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: KeptStatistics | None) -> None:
        if statistics is not None:
            statistics.check(self)
        self._statistics = statistics

    @property
    def labelling(self) -> Labelling:
        """One label per image, or several."""
        return labelling_of(self.multi_label)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "ZeroShotClassifier":
        """Move model and class embeddings; returns itself."""
        self.model.to(device)
        self.class_embeddings = ordinary(self.class_embeddings.to(device))
        self._head = None if self._head is None else self._head.to(self.device)
        return self

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

    @torch.no_grad()
    def predict_logits(self, images: Images, *, batch_size: int = 64) -> Tensor:
        """Logits (N, C) of one or many images, on the CPU.

        Args:
            images: as for `predict`.
            batch_size: images per forward pass.
        """
        return self._logits_of(images_of(images)[0], batch_size)

    @torch.no_grad()
    def _logits_of(self, items: Sequence[ImageLike], batch_size: int) -> Tensor:
        logits = Rows(len(items))
        for _, part in self.classified(pixel_batches(items, self.image_processor, batch_size)):
            logits.add(part)
        return logits.joined()

    def classified(self, batches: Iterable[Any], **options: Any) -> Iterator[tuple[Seen, Tensor]]:
        """Batches of images, what was seen of each, and its logits (B, C) with adapter and head.

        Args:
            batches: as for `reading`.
            options: of `reading`: `labelled`, `progress`, `description`.
        """
        head = self.head
        if head is not None and head.features == "coordinates":
            tower: TowerAnatomy | None = adapted_tower(self.model)
            options |= {"taps": True, "check": "first"}
        else:
            tower = None
            options |= {"adapters": head is None}
        for seen in reading(self.model, tower, batches, **options):
            yield seen, self.answer_to(seen.readout, seen.capture)

    def answer_to(self, readout: Tensor, capture: Capture | None = None) -> Tensor:
        """Logits (B, C) from one run of the tower.

        Args:
            readout: (B, d), with adapters where there is neither a capture nor a class head.
            capture: what the taps saw of the unadapted model; None where no head reads coordinates.
        """
        if capture is None:
            return self.answer(readout, readout)
        state, gains = readout_state(self.model), gains_of(self.model).detach()
        found = coordinates_of(state, capture)
        adapted = compose(state, base_of(state, readout), found, gains)
        return self.answer(adapted, readout, found)

    def answer(self, adapted: Tensor, readout: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Logits (B, C), the class head's where there is one.

        Args:
            adapted: readouts with the gains (B, d).
            readout: those of the unadapted model (B, d), from which a head on the embedding and
                the texts beside it take all they know.
            coordinates: in the active adapter's basis (B, K); None where no head reads them.
        """
        head = self.head
        if head is None:
            return self.logits(adapted)
        if head.features == "embedding":
            features = embedding_features(readout)
            return head.logits(self.logits(readout), features, self.labelling)
        assert coordinates is not None
        return head.logits(self.logits(adapted), coordinates, self.labelling)

    def predict(
        self, images: Images, *, batch_size: int = 64, coverage: float | None = None
    ) -> Any:
        """Classify images.

        Args:
            images: PIL images, paths, bytes, file objects, arrays (H, W, C) or tensors (C, H, W),
                whole numbers from 0 or floats from 0 to 1; one, a list, or an array of many. Or a
                folder, a pattern such as "photos/*.jpg" or a `datasets.Dataset`: all of its images.
            batch_size: images per forward pass.
            coverage: how often `Prediction.plausible`, a set of classes, should hold the right
                one, such as 0.9; None for no sets.

        Returns:
            A `Prediction` for one image, a list of them for many.

        Raises:
            ResiDualError: no images, or one that cannot be read (names it); as `plausible`.
        """
        if coverage is not None:
            self.sets(coverage)  # says before any work what is amiss
        items, single = images_of(images)
        logits = self._logits_of(items, batch_size)
        files = [os.fspath(i) if isinstance(i, str | os.PathLike) else None for i in items]
        plausible = None if coverage is None else self.sets(coverage).sets(logits)
        predictions = predictions_of(logits, self.class_names, self.multi_label, files, plausible)
        return predictions[0] if single else predictions

    def sets(self, coverage: float) -> PredictionSets:
        """What gives sets of classes that hold the right one as often as asked.

        By the jackknife of the class head's left-out predictions: near the coverage from 16 images
        per class on, above it with fewer; nothing is certain of one class or one image.

        Args:
            coverage: between 0 and 1.

        Raises:
            ResiDualError: no class head, one that knows of no left-out images, or classes that it
                was not fitted on.
        """
        head = self.head
        if head is None:
            raise ResiDualError(
                "sets of classes are made of what a class head says of images it did not see, and "
                "this classifier has none: fit one (method='ridge'), or leave the coverage out."
            )
        if head.class_count != len(self.class_names):
            raise ResiDualError(
                f"the class head knows {head.class_count} of {len(self.class_names)} classes, and "
                "nothing says how sure one may be of the others: leave the coverage out."
            )
        return head.sets(coverage)

    @torch.no_grad()
    def update(self, images: Images, labels: Any, *, batch_size: int = 64) -> int:
        """Add images to the class head; how many there were.

        Equal to a fit from scratch on the same basis, scales, strengths, text weight and
        temperature, to rounding, and without the old images: from kept statistics. Class embeddings
        stay, and so does what is known of left-out images, that of the fit.

        Args:
            images: as for `predict`.
            labels: a name or number of the head's classes for each; with several labels per image a
                list of them for each, or zeros and ones (n, C). Images seen before count again.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: no head or statistics (`fit_adapter(..., keep_statistics=True)` leaves
                them), statistics of another model or basis, or labels that do not suit.
        """
        return self._changed(images, labels, batch_size, forget=False)

    @torch.no_grad()
    def forget(self, images: Images, labels: Any, *, batch_size: int = 64) -> int:
        """Take images out of the class head that it was fitted on; how many there were.

        Head and statistics are then those of a fit from scratch without them, as for `update`. What
        was said of left-out images goes, and with it the sets of `sets`. The bases, and class
        embeddings that are means, keep their share of the images: fit anew where that matters.

        Args:
            images: as for `update`: those very images.
            labels: that they were added with.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: as `update`; images that cannot have been among those added, as far as
                sums can tell; a class that would be left without any.
        """
        return self._changed(images, labels, batch_size, forget=True)

    def _changed(self, images: Images, labels: Any, batch_size: int, *, forget: bool) -> int:
        updating.kept_of(self)  # says before any work what is amiss
        items, single = images_of(images)
        numbers = updating.numbers_of(self, labels, len(items), single=single)
        read = self._read(items, batch_size)
        updating.change(self, read, numbers, forget=forget)
        digests = updating.file_digests(items)
        if forget:
            self.fitted_on = tuple(d for d in self.fitted_on if d not in set(digests))
        else:
            self.fitted_on = (*self.fitted_on, *digests)
        return len(items)

    @torch.no_grad()
    def add_class(
        self,
        name: str,
        images: Images,
        embedding: Tensor | None = None,
        *,
        batch_size: int = 64,
    ) -> int:
        """One more class for the class head, from its images alone; its number.

        Args:
            name: of the class; one that the classifier has by its text alone joins the head.
            images: of the class, as for `predict`.
            embedding: of the class (d,), such as a row of `embed_classes`. None where classes are
                means of images (it is that of these), or where the classifier has it.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: as `update`; a name that the head has, no embedding where one is needed,
                several labels per image.
        """
        updating.kept_of(self)
        items, _ = images_of(images)
        number = updating.add_class(self, name, self._read(items, batch_size), embedding)
        self.fitted_on = (*self.fitted_on, *updating.file_digests(items))
        return number

    @torch.no_grad()
    def remove_class(
        self, name: str, images: Images | None = None, *, batch_size: int = 64
    ) -> None:
        """Take a class out, and its images out of the class head.

        Args:
            name: of the class.
            images: all of its images that the head was fitted on; not needed where statistics were
                kept of each class (`keep_statistics="per class"`), or for a class by its text.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: as `update`; no such class, fewer than two left, or other images.
        """
        if images is None:
            updating.remove_class(self, name)
            return
        items, _ = images_of(images)
        updating.remove_class(self, name, lambda: self._read(items, batch_size))
        gone = set(updating.file_digests(items))
        self.fitted_on = tuple(digest for digest in self.fitted_on if digest not in gone)

    def _read(self, items: Sequence[ImageLike], batch_size: int) -> updating.Read:
        return updating.Read.of(self, pixel_batches(items, self.image_processor, batch_size))

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
            head_bytes: what a class head may take; a larger one is saved in half precision or of
                low rank, with a warning, since it is another head by that much. None for no bound.
        """
        head = self._head_within(head_bytes)
        target, adapters = path_of(directory), Adapters.of(self.model)
        record = self._described(adapters)
        there = target / CARD
        old: list[str] = []
        with atomic_directory(target, gone=old) as folder:
            if there.is_file() and not is_ours(there):
                (folder / CARD).write_bytes(there.read_bytes())
                if isinstance(self.model, PeftModel):  # it says there what PEFT's cards say
                    self.model.create_or_update_model_card(str(folder))
            write_adapters(self.model, adapters, folder)
            if self.image_processor is not None:
                self.image_processor.save_pretrained(folder)
            write_classes(folder, record, self.class_embeddings, head)
            write_fitted_on(folder, target, self.fitted_on)
            if self.statistics is not None and head is not None:
                digest = updating.head_digest(head.tensors())
                self.statistics.save(folder / updating.STATISTICS, digest)
            elif (target / updating.STATISTICS).is_file():  # of the head that is replaced
                old.append(updating.STATISTICS)
            if not there.is_file() or is_ours(there):
                where = location or target.resolve().name
                facts = adapter_facts(self.model, record, card or Facts(), where)
                write_card(self.model, folder, facts)
            old += of_the_old(target, record=not same_adapter(folder, target))
        return target

    def _head_within(self, budget: int | None) -> TrainedHead | None:
        head = self.head
        if head is None or budget is None or head.bytes <= budget:
            return head
        small = head.within(budget)
        logger.warning(
            "the class head of %.0f MB is saved in %.0f MB (%s): measure what is saved, or give "
            "head_bytes=None",
            head.bytes / 1e6,
            small.bytes / 1e6,
            small.described,
        )
        return small

    def _described(self, adapters: Adapters) -> ClassifierRecord:
        name, kind = origin_of(self.model)
        return ClassifierRecord(
            class_names=self.class_names,
            templates=self.templates,
            logit_scale=self.logit_scale,
            base_model=name,
            base_class=kind,
            dtype=str(next(base_model(self.model).parameters()).dtype).split(".")[-1],
            adapted=bool(adapters.folders),
            multi_label=self.multi_label,
            logit_bias=self.logit_bias,
            split=self.split,
            adapters=dict(adapters.folders) if adapters.folders else None,
            active=adapters.active,
            head=None if self.head is None else self.head.record(self._basis_of_head()),
        )

    def _basis_of_head(self) -> str | None:
        """The digest of the basis that the head's coordinates are in."""
        if self.head is None or self.head.features == "embedding":
            return None
        return basis_digest(self.model)

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
        staying._statistics = None  # they would only be written to be left out
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
        directory = local_classifier(name_or_path, revision, token)
        record, embeddings, head = read_classes(directory, name_or_path)
        adapters = saved_adapters(record, directory)
        processor = None
        if any(directory.glob("*processor_config.json")):
            processor = load_image_processor(directory)
        if model is None:
            is_local = Path(name_or_path).expanduser().is_dir()
            model = load_base(record, token, is_local=is_local)
        with unchanged_if_refused(model):
            if adapters.folders:
                model = load_adapters(model, adapters, directory, is_trainable=is_trainable)
            classifier = cls(
                model.train(is_trainable),
                record.class_names,
                embeddings,
                image_processor=processor,
                **settings_of(record),
            )
            classifier.head = head
            check_basis(classifier, record, name_or_path)
            path = directory / updating.STATISTICS
            if head is not None and path.is_file():
                digest = updating.head_digest(head.tensors())
                classifier._statistics = partial(KeptStatistics.load, path, digest)
        classifier.split, classifier.fitted_on = record.split, read_fitted_on(directory)
        return classifier if device is None else classifier.to(device)


def check_basis(
    classifier: ZeroShotClassifier,
    record: ClassifierRecord,
    name: object,
    adapter: str | None = None,
) -> None:
    """Raise a ResiDualError where a saved head reads coordinates in another basis than is there."""
    wanted = None if record.head is None else record.head.basis
    if wanted is not None and basis_digest(classifier.model, adapter) not in (wanted, None):
        raise ResiDualError(
            f"the class head of '{name}' was fitted on coordinates in another basis than its "
            "adapter has: the files do not belong together. Save or download the classifier again."
        )


def _logit_bias(*models: nn.Module) -> float:
    for model in models:
        bias = getattr(base_model(model), "logit_bias", None)
        if isinstance(bias, Tensor):
            return float(bias.detach())
    return 0.0


def _logit_scale(*models: nn.Module) -> float:
    for model in models:
        scale = getattr(base_model(model), "logit_scale", None)
        if isinstance(scale, Tensor):
            return float(scale.detach().double().exp())
    return USUAL_LOGIT_SCALE
