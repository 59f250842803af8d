"""What a classifier says of images: predictions, and sets of classes that hold the right one."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..bases.reading import ReadBatch
from ..bases.rows import Rows
from ..data.images import ImageLike
from ..data.inputs import Images, images_of
from ..data.labels import ONE_LABEL, check_same, numbers_of
from ..data.provenance import file_digests
from ..errors import ResiDualError, counted
from .headed import HeadedClassifier
from .heads.conformal import WAYS, By, PredictionSets, fewest, kept_scores
from .heads.jackknife_plus import PlusSets, Sets
from .kept import HOW_ROWS, answers_digest
from .outputs import pixel_batches
from .predictions import predictions_of
from .trained_head import embedding_features

SETS_OF_ONE = "sets of classes hold the one right label"


class PredictingClassifier(HeadedClassifier):
    """A classifier that predicts; see `ZeroShotClassifier`."""

    # scores of held-out images, and the digest of the answers that they are of
    _held_out: tuple[Tensor, str] | None = None

    @torch.no_grad()
    def predict_logits(self, images: Images, *, batch_size: int = 64) -> Tensor:
        """Logits (N, C) of one or many images, on the CPU.

        Args:
            images: as for `predict`.
            batch_size: images per forward pass.
        """
        return self._answers_of(images_of(images)[0], batch_size)[0]

    @torch.no_grad()
    def _answers_of(
        self, items: Sequence[ImageLike], batch_size: int, sets: Sets | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits (N, C), how like the head's images they are (N,) where it can tell, and sets."""
        logits, like, inside = Rows(len(items)), Rows(len(items)), Rows(len(items))
        for seen, part in self.classified(pixel_batches(items, self.image_processor, batch_size)):
            logits.add(part)
            if (values := self.alike(seen)) is not None:
                like.add(values)
            if sets is not None:
                inside.add(self.plausible(sets, seen, part))
        like_if_any, inside_if_any = (r.joined() if len(r) else None for r in (like, inside))
        return logits.joined(), like_if_any, inside_if_any

    def alike(self, batch: ReadBatch) -> Tensor | None:
        """`Prediction.alike` of a batch that `classified` gave (B,); None where nothing tells it.

        A class head that was fitted on all of the classes, with one label per image, does.
        """
        head = self.head
        if head is None or head.known is None or head.class_count != len(self.class_names):
            return None
        embedding, coordinates = embedding_features(batch.readout), None
        if head.known.coordinates is not None:
            coordinates = self.coordinates(batch)
        return head.known.p_values(embedding, coordinates)

    def predict(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        coverage: float | None = None,
        sets: By | None = None,
        none_of_these: float | None = None,
    ) -> Any:
        """Classify images.

        Args:
            images: PIL images, paths, bytes, file objects, arrays (H, W, C) or tensors (C, H, W),
                whole numbers from 0 or floats from 0 to 1; one, a list, or an array of many. Or a
                folder, a pattern such as "photos/*.jpg" or a `datasets.Dataset`: all of its images.
            batch_size: images per forward pass.
            coverage: how often `Prediction.plausible`, a set of classes, should hold the right
                one, such as 0.9; None for no sets.
            sets: what these are made by, "held-out", "jackknife+" or "jackknife"; None for the
                surest of them that the classifier can do (`sets`). `Prediction.plausible_by` says.
            none_of_these: the share of images of the classes that may be called none of them, such
                as 0.05, so that others are (`Prediction.none_of_these`); None for no such answer.

        Returns:
            A `Prediction` for one image, a list of them for many.

        Raises:
            ResiDualError: no images, or one that cannot be read (names it); as `sets` and
                `check_none_of_these`.
        """
        covering = self.sets_if_asked(coverage, sets)  # says before any work what is amiss
        if none_of_these is not None:
            self.check_none_of_these(none_of_these)
        items, single = images_of(images)
        logits, alike, plausible = self._answers_of(items, batch_size, covering)
        files = [os.fspath(i) if isinstance(i, str | os.PathLike) else None for i in items]
        predictions = predictions_of(
            logits,
            self.class_names,
            self.multi_label,
            files,
            plausible,
            plausible_by=None if covering is None else covering.by,
            alike=alike,
            none_of_these=none_of_these,
            thresholds=self.thresholds,
        )
        return predictions[0] if single else predictions

    def sets(self, coverage: float, by: By | None = None) -> Sets:
        """What gives sets of classes that hold the right one as often as asked.

        By images that played no part in the fit where there are enough of them ("held-out": at
        least so often, on average over draws of the images), else by "jackknife+" where the fit
        kept its images' rows, else by the "jackknife" of a class head's left-out predictions, both
        near the coverage where that was measured. Nothing is certain of one class or one image,
        nor of new groups (`group_column`), whose images are not drawn like those of the fit.

        Args:
            coverage: between 0 and 1.
            by: one of the three; None for the first of them that the classifier can do.

        Raises:
            ResiDualError: too few images for the coverage, or what is asked for was not kept: no
                held-out images since the classifier last changed, no rows, no class head, one that
                knows of no left-out images, or classes that it was not fitted on.
        """
        if by not in (None, *WAYS):
            raise ResiDualError(f"wanted sets by {', '.join(WAYS)}, got {by!r}.")
        held, head = self.held_out, self.head
        if by is None:
            ours = None if head is None or head.left_out_scores is None else head.class_count
            alone = ours != len(self.class_names)  # no head that could say something of all classes
            enough = held is not None and (alone or len(held) >= fewest(coverage))
            by = "held-out" if enough else "jackknife" if self._without is None else "jackknife+"
        if by != "held-out":
            return self._sets_of_head(coverage, by)
        if held is None:
            why = "knows of no held-out images" if self._held_out is None else "has changed since"
            raise ResiDualError(
                f"sets by held-out images are of a classifier that was calibrated, and this one "
                f"{why}: calibrate(images, labels), or fit with sets='held-out'."
            )
        grouped = self.split is not None and self.split.group_column is not None
        return PredictionSets(held, coverage, by, grouped=grouped)

    def _sets_of_head(self, coverage: float, by: By) -> Sets:
        """By what a class head says of the images that it was fitted on, each left out."""
        head = self.head
        if head is None:
            raise ResiDualError(
                "sets of classes are made of what a class head says of images it did not see, and "
                "this classifier has none: fit one (method='ridge'), calibrate it with held-out "
                "images, or leave the coverage out."
            )
        if head.class_count != len(self.class_names):
            raise ResiDualError(
                f"the class head knows {head.class_count} of {len(self.class_names)} classes, and "
                "nothing says how sure one may be of the others: leave the coverage out, or "
                "calibrate with held-out images."
            )
        if self.labelling.where_one(head.low_rank):
            raise ResiDualError(
                f"this class head is kept in {head.described}, and answers otherwise than the fits "
                "that left images out: calibrate it with held-out images, or save it in more bytes "
                "(head_bytes)."
            )
        if by == "jackknife+":
            if self.without is None:
                raise ResiDualError(
                    "jackknife+ needs what the head read of each image of its fit, which was not "
                    f"kept: {HOW_ROWS}, or take the jackknife."
                )
            return PlusSets.of(self.without, coverage)
        if head.left_out_scores is None:
            raise ResiDualError(
                "this class head knows of no images that were left out, which sets of classes are "
                "made of: fit it on one label per image, with two or more images of each class (an "
                "update leaves none), or calibrate it with held-out images."
            )
        return PredictionSets(head.left_out_scores, coverage, by)

    def sets_if_asked(self, coverage: float | None, by: By | None = None) -> Sets | None:
        """`sets`, if there is a coverage; a way to make them and no coverage is an error."""
        if coverage is not None:
            return self.sets(coverage, by)
        if by is not None:
            raise ResiDualError(f"wanted a coverage for sets by {by}, such as 0.9, got none.")
        return None

    def plausible(self, sets: Sets, batch: ReadBatch, logits: Tensor) -> Tensor:
        """Which classes are in the set of each image of a batch that `classified` gave (B, C)."""
        if isinstance(sets, PredictionSets):
            return sets.sets(logits)
        zero_shot, features = self.asked_of(*self.taken_apart(batch.readout, batch.capture))
        return sets.sets(features, zero_shot)

    @property
    def held_out(self) -> Tensor | None:
        """−log p of the right class of held-out images, sorted (n,); what `calibrate` leaves.

        None without any, and where head, classes or gains have changed since.
        """
        if self._held_out is None:
            return None
        scores, digest = self._held_out
        return scores if digest == answers_digest(self) else None

    @held_out.setter
    def held_out(self, scores: Tensor | None) -> None:
        self._held_out = None if scores is None else (scores, answers_digest(self))

    @torch.no_grad()
    def calibrate(self, images: Images, labels: Any, *, batch_size: int = 64) -> int:
        """Let images that played no part in the fit say how sure the classifier may be.

        `predict(..., coverage=0.9)` then gives sets by them, and they are saved with it: one number
        an image, none of its pixels. Whatever changes the classifier's answers, such as `update`,
        asks for it anew. Calibrating again replaces what was there.

        Args:
            images: as for `predict`: drawn like those to come, one label each.
            labels: a name or number of the classes for each.
            batch_size: images per forward pass.

        Returns:
            How many images there were.

        Raises:
            ResiDualError: several labels per image, labels that do not suit, or images among those
                of the fit, as far as files tell.
        """
        check_same(ONE_LABEL, self.labelling, SETS_OF_ONE)
        items, single = images_of(images)
        numbers = numbers_of(self.labelling, self.class_names, labels, len(items), single=single)
        if known := set(self.fitted_on).intersection(file_digests(items)):
            raise ResiDualError(
                f"{counted(len(known), 'image')} of {len(items)} to calibrate with are among those "
                "of the fit, which the classifier knows too well: bring others."
            )
        self.calibrate_by(self._answers_of(items, batch_size)[0], numbers)
        return len(items)

    def calibrate_by(self, logits: Tensor, labels: Tensor) -> None:
        """As `calibrate`, by logits (n, C) that this classifier gives, and labels (n,).

        Raises:
            ResiDualError: no images, several labels of each, other shapes, no class's number, or
                NaN or infinite logits.
        """
        check_same(ONE_LABEL, self.labelling, SETS_OF_ONE)
        classes = len(self.class_names)
        if logits.shape != (len(labels), classes):
            raise ResiDualError(
                f"wanted logits ({len(labels)}, {classes}) for {len(labels)} labels of {classes} "
                f"classes, got {tuple(logits.shape)}."
            )
        numbers = not (labels.is_floating_point() or labels.dtype == torch.bool)
        one_each = labels.shape == (len(labels),) and numbers
        if one_each and not bool(((labels >= 0) & (labels < classes)).all()):
            raise ResiDualError(f"wanted labels from 0 to {classes - 1}, got others.")
        scores = kept_scores(logits.detach().cpu(), labels.cpu().long()) if one_each else None
        if scores is None:
            raise ResiDualError("wanted images with one label each to calibrate with, got none.")
        if not bool(scores.isfinite().all()):
            raise ResiDualError("wanted finite logits to calibrate with, got NaN or infinite ones.")
        self.held_out = scores

    def check_none_of_these(self, share: float) -> None:
        """Refuse a share of images of the classes, to be called none of them, that cannot be told.

        Raises:
            ResiDualError: no class head, one of other classes or without distances of left-out
                images, or too few of those for the share.
        """
        head = self.head
        if head is None or head.known is None:
            raise ResiDualError(
                "'none of these' is told by how far a class head's training images lie from their "
                "classes, and this classifier knows of none: fit a head on one label per image "
                "(method='ridge'), with 20 images or more; an update leaves none."
            )
        if head.class_count != len(self.class_names):
            raise ResiDualError(
                f"the class head knows {head.class_count} of {len(self.class_names)} classes: "
                "images of the others would be called none of these. Leave none_of_these out."
            )
        head.known.check_share(share)
