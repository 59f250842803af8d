"""What a fit is of, and what it came to."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import PeftModel, get_peft_model
from torch import Tensor

from ...classifiers.backbones import Backbone
from ...classifiers.class_means import class_means_of
from ...classifiers.evaluation import Evaluation
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData
from ...hub.facts import MethodRow
from ...solvers.methods import METHODS, Outcome, Rows
from ...solvers.store import CoordinateStore
from ...tuner import ResiDualConfig
from .recipe import Recipe

clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Task:
    """What a fit is of."""

    backbone: Backbone  # model and image processor
    # of class names as texts; None where classes are means of training images
    classifier: ZeroShotClassifier | None
    config: ResiDualConfig  # of the adapter
    recipe: Recipe
    # name -> value: what the result depends on besides the images and the model
    settings: dict[str, Any]

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
    ) -> ZeroShotClassifier:
        """The classifier, with the bias that suits the model without its adapter.

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
        fitted.labelling.bias(lambda: fitted.fit_bias(readout, labels))
        return fitted


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
    method: str  # in words
    images_read: int  # how many images the timed pass read
    strength: float | None = None  # see `FitReport`
    trained: int | None = None  # how many numbers were trained; None for all gains
    table: tuple[MethodRow, ...] = ()  # what was compared
    notes: tuple[str, ...] = ()  # what the user should know of the images
    # the images of the fit as methods take them; None for the Trainer's way, and where coordinates
    # are larger than memory
    learned: Rows | None = None
    outcome: Outcome | None = None  # that was chosen; None for the Trainer's way
