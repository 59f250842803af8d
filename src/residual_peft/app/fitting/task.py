"""What a fit is of, and what it came to."""

from dataclasses import dataclass
from typing import Any

from peft import PeftModel, get_peft_model
from torch import Tensor

from ...classifiers.backbones import Backbone
from ...classifiers.class_means import class_means_of
from ...classifiers.evaluation import Evaluation
from ...classifiers.heads.conformal import By
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData
from ...data.labels import ONE_LABEL, check_same
from ...errors import ResiDualError
from ...hub.facts import MethodRow
from ...solvers.choice import AUTO
from ...solvers.methods import METHODS, Outcome, Rows
from ...solvers.store import CoordinateStore
from ...tuner import ResiDualConfig

PER_CLASS = "per class"
_RIDGES = [name for name, way in METHODS.items() if way.ridge is not None]


@dataclass(frozen=True)
class Task:
    """What a fit is of."""

    backbone: Backbone  # model and image processor
    # of class names as texts; None where classes are means of training images
    classifier: ZeroShotClassifier | None
    config: ResiDualConfig  # of the adapter
    # name -> value: what the result depends on besides the images and the model
    settings: dict[str, Any]
    seed: int  # of the Trainer
    method: str = AUTO  # a name of `METHODS`, or "auto" for what suits the images best
    balanced: bool = False  # whether every class counts alike, however few its images
    trainer: bool = False  # whether the HF Trainer fits gains instead
    # whether a ridge head's sums are kept, to update it by; "per class" for those of each class,
    # too
    keep_statistics: bool | str = False
    sets: By = "jackknife"  # what is kept for sets of classes

    def title(self, method: str) -> str:
        """What a method is in words, here."""
        if method == "gains":
            return f"one gain per {self.config.granularity}"
        return METHODS[method].title

    def adapted(self) -> PeftModel:
        """The model with the adapter in, which the classifier then has."""
        model = get_peft_model(self.backbone.model, self.config)
        if self.classifier is not None:
            self.classifier.model = model
        return model

    def with_classes(
        self, model: PeftModel, images: ImageData, readout: Tensor, labels: Tensor
    ) -> tuple[ZeroShotClassifier, float]:
        """The classifier, and the bias that suits the model without its adapter.

        Where class names are no texts, it is one of the means of training readouts.
        """
        classifier = self.classifier
        if classifier is None:
            means = class_means_of(readout, labels, images.class_names)
            processor = self.backbone.image_processor
            classifier = ZeroShotClassifier(
                model, images.class_names, means, image_processor=processor
            )
        fitted = classifier
        return fitted, fitted.labelling.bias(lambda: fitted.fit_bias(readout, labels))


@dataclass(frozen=True)
class Done:
    """A classifier with its fitted adapter, and what was measured on the way."""

    classifier: ZeroShotClassifier  # fitted
    before: Evaluation  # on the test images, without the adapter
    after: Evaluation  # with it
    train: dict[str, float]  # metrics on the training images with it
    train_labels: Tensor  # of the training images
    rows: CoordinateStore | None  # coordinates of the test images; None in stream mode
    encoding_seconds: float  # see `FitReport`
    fitting_seconds: float  # likewise
    strength: float | None  # likewise
    method: str  # in words
    images_read: int  # how many images the timed pass read
    trained: int | None = None  # how many numbers were trained; None for all gains
    table: tuple[MethodRow, ...] = ()  # what was compared
    notes: tuple[str, ...] = ()  # what the user should know of the images
    # the images of the fit as methods take them, and the outcome that was chosen; None for the
    # Trainer's way, and where coordinates are larger than memory
    seen: tuple[Rows, Outcome] | None = None


def check_statistics(keep: bool | str, method: str, trainer: bool) -> None:
    """Raise a ResiDualError where what is fitted has no sums that could be kept."""
    if keep not in (False, True, PER_CLASS):
        raise ResiDualError(f"wanted keep_statistics True, False or '{PER_CLASS}', got {keep!r}.")
    if keep and (trainer or method not in (AUTO, *_RIDGES)):
        raise ResiDualError(
            f"statistics that a head can be updated by are of a ridge ({', '.join(_RIDGES)}), got "
            f"{'trainer=True' if trainer else method}: leave keep_statistics out, or fit one."
        )


def check_sets(sets: By, method: str, trainer: bool) -> None:
    """Raise a ResiDualError where what is fitted cannot have such sets of classes."""
    if sets == "held-out" and trainer:
        raise ResiDualError(
            "the HF Trainer stops by the validation images, which are then no held-out ones: leave "
            "sets out, and calibrate the classifier with others (ZeroShotClassifier.calibrate)."
        )
    if sets == "jackknife+" and (trainer or method not in (AUTO, *_RIDGES)):
        raise ResiDualError(
            f"jackknife+ is of a ridge ({', '.join(_RIDGES)}), got "
            f"{'trainer=True' if trainer else method}: fit one, or leave sets out."
        )


def check_sets_of(sets: By, images: ImageData) -> None:
    """Raise a ResiDualError where images cannot give such sets of classes."""
    if sets == "jackknife":
        return
    check_same(ONE_LABEL, images.labelling, "leave sets out, which hold the one right label")
    if sets == "held-out" and "validation" not in images.splits:
        raise ResiDualError(
            "sets by held-out images are calibrated by the validation images, and there are none: "
            "bring some as validation=DATA, or a share of the others, which few leaves none of."
        )


def check_way(
    config: ResiDualConfig | None, trainer: bool, method: str = AUTO, balanced: bool = False
) -> None:
    """Raise a ResiDualError where gains cannot be fitted from coordinates, or not as asked."""
    if trainer and (balanced or method not in (AUTO, "gains")):
        asked = "balanced=True" if balanced else f"method='{method}'"
        raise ResiDualError(
            f"the HF Trainer fits gains, and every image counts alike; got {asked} with "
            "trainer=True: leave out one of the two."
        )
    if config is not None and config.mode == "stream" and not trainer:
        raise ResiDualError(
            "an adapter in stream mode has no coordinates to fit from; use trainer=True."
        )
