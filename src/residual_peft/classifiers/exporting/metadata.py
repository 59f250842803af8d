"""What an exported file says beside its graph."""

import math
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from ...data.preparation import Preparation
from ...errors import ResiDualError
from ..heads.conformal import By, PredictionSets
from ..zero_shot import ZeroShotClassifier

COVERAGES = (0.8, 0.9, 0.95, 0.99)


def metadata_of(
    classifier: ZeroShotClassifier, preparation: Preparation, size: tuple[int, int]
) -> dict[str, Any]:
    """What a file says beside its graph, JSON-able.

    `class_names`; `preprocessing`, a `Preparation`; `size`, height and width of the pixels;
    `several_labels`, and then the `threshold`, the probability from which a class is among the
    labels, one for all or a list of one for each; `plausible`,
    for each coverage the probability from which a class is in the set that holds the right one so
    often (as `Prediction.plausible`), where the classifier knows; `plausible_by`, "held-out" or
    "jackknife": what says so, None where nothing does. Sets by jackknife+ are no one threshold.
    """
    by: By = "jackknife" if classifier.held_out is None else "held-out"
    plausible = _plausible(classifier, by)
    return {
        "made_by": f"residual-peft {version('residual-peft')}",
        "class_names": list(classifier.class_names),
        "preprocessing": preparation.as_dict(),
        "size": list(size),
        "several_labels": classifier.multi_label,
        "threshold": _threshold(classifier),
        "plausible": plausible,
        "plausible_by": by if plausible else None,
    }


def _threshold(classifier: ZeroShotClassifier) -> float | list[float] | None:
    if classifier.thresholds is None:
        return classifier.labelling.threshold
    return [float(value) for value in classifier.thresholds.double().sigmoid()]


def _plausible(classifier: ZeroShotClassifier, by: By) -> Mapping[str, float]:
    found = {}
    for coverage in COVERAGES:
        with suppress(ResiDualError):  # too few images for it, or none that the fit did not see
            sets = classifier.sets(coverage, by)
            assert isinstance(sets, PredictionSets)
            found[str(coverage)] = math.exp(-sets.threshold)
    return found
