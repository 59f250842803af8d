"""What a fit cannot be asked for: told before any work."""

import os
from pathlib import Path
from typing import Any

from ...classifiers.heads.conformal import By
from ...data import ImageData
from ...data.labels import ONE_LABEL, check_same
from ...errors import ResiDualError
from ...hub.directories import ADAPTER_CONFIG
from ...solvers.choice import AUTO
from ...solvers.methods import METHODS
from ...tuner import ResiDualConfig

PER_CLASS = "per class"
_RIDGES = [name for name, way in METHODS.items() if way.ridge is not None]


def check_kept(keep: bool | str, sets: By, method: str, trainer: bool) -> None:
    """Raise a ResiDualError where what is fitted has no such sums, or no such sets of classes."""
    ridge, got = (False, "trainer=True") if trainer else (method in (AUTO, *_RIDGES), method)
    if keep not in (False, True, PER_CLASS):
        raise ResiDualError(f"wanted keep_statistics True, False or '{PER_CLASS}', got {keep!r}.")
    if keep and not ridge:
        raise ResiDualError(
            f"statistics that a head can be updated by are of a ridge ({', '.join(_RIDGES)}), got "
            f"{got}: leave keep_statistics out, or fit one."
        )
    if sets == "held-out" and trainer:
        raise ResiDualError(
            "the HF Trainer stops by the validation images, which are then no held-out ones: leave "
            "sets out, and calibrate the classifier with others (ZeroShotClassifier.calibrate)."
        )
    if sets == "jackknife+" and not ridge:
        raise ResiDualError(
            f"jackknife+ is of a ridge ({', '.join(_RIDGES)}), got {got}: fit one, or leave sets "
            "out."
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


def check_apart(target: Path, *sources: Any) -> None:
    """Raise a ResiDualError where an adapter would lie among the images that it is fitted to.

    Sources that are no folders are apart from it, and so is a folder of its own below theirs, which
    readers of images pass by.
    """
    if not target.is_dir():
        return
    there, own = target.resolve(), not os.listdir(target) or (target / ADAPTER_CONFIG).is_file()
    for source in sources:
        folder = Path(source).expanduser() if isinstance(source, str | os.PathLike) else None
        if folder is None or not folder.is_dir():
            continue
        folder = folder.resolve()
        if there == folder or (folder in there.parents and not own):
            raise ResiDualError(
                f"wanted a folder for the adapter alone, got '{target}', where images of "
                f"'{source}' are: its files would lie among them, and its small pictures would "
                "count as images of a class. Name another output."
            )


def check_way(config: ResiDualConfig, trainer: bool, method: str, balanced: bool) -> None:
    """Raise a ResiDualError where gains cannot be fitted from coordinates, or not as asked."""
    if trainer and (balanced or method not in (AUTO, "gains")):
        asked = "balanced=True" if balanced else f"method='{method}'"
        raise ResiDualError(
            f"the HF Trainer fits gains, and every image counts alike; got {asked} with "
            "trainer=True: leave out one of the two."
        )
    if config.mode == "stream" and not trainer:
        raise ResiDualError(
            "an adapter in stream mode has no coordinates to fit from; use trainer=True."
        )
