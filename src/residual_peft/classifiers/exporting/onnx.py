"""A classifier as one ONNX file that says the same as torch, and all that a script needs to know.

The graph is traced by torch's own exporter; onnxruntime then runs it beside the classifier, and the
file appears only where the two agree. Names of classes, the preparation of images and thresholds
are in the file's metadata, each as JSON.
"""

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import onnxscript  # noqa: F401  torch's exporter wants it: said here, before any work
import torch
from PIL import Image
from torch import Tensor

from ...data.labels import labelling_of
from ...data.passes import no_processor
from ...data.processors import Preparation, pixel_values
from ...errors import ResiDualError, counted
from ...hub.files import PathLike, atomic_file, plain_of
from ...towers.registry import find_tower
from ..heads.conformal import By, PredictionSets
from ..zero_shot import ZeroShotClassifier
from .graph import ClassifierGraph, check_size, in_float32

INPUT, OUTPUTS = "pixels", ("probabilities", "logits")
TOLERANCE = 1e-4  # of a probability; of a logit, times the largest there is
OPSET = 18  # known to onnxruntime from 1.14 on
COVERAGES = (0.8, 0.9, 0.95, 0.99)  # of the sets of classes whose thresholds a file says
TRIED = 8  # images that the two are compared on; one of them by itself


@dataclass(frozen=True)
class ExportedOnnx:
    """What was written, and how near it is to torch.

    Attributes:
        path: of the file.
        bytes: it takes.
        size: height and width of the pixels that it takes.
        classes: how many it answers for.
        multi_label: whether an image may have several labels.
        images: how many were tried.
        probability_difference: the largest on the images that were tried.
        logit_difference: likewise, as a share of the largest logit.
        dtype: that the model had; the file computes in float32.
        seconds: all of it took.
    """

    path: Path
    bytes: int
    size: tuple[int, int]
    classes: int
    multi_label: bool
    images: int
    probability_difference: float
    logit_difference: float
    dtype: str
    seconds: float

    def lines(self) -> list[str]:
        """For people."""
        height, width = self.size
        said = [
            f"{self.path}: {self.bytes / 1e6:.1f} MB; pixels (N, 3, {height}, {width}) in, "
            f"{labelling_of(self.multi_label).answer_words} {self.classes:,} classes out",
            f"onnxruntime and torch differ by {self.probability_difference:.1e} in a probability "
            f"at most, on {counted(self.images, 'image')}",
        ]
        if self.dtype != "float32":
            said.append(f"the adapter's model is in {self.dtype}; the file computes in float32")
        return said

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        called = {"path": "file", "multi_label": "several_labels"}
        found = {called.get(name, name): value for name, value in plain_of(self).items()}
        return found | {"file": str(self.path)}


def export_onnx(
    classifier: ZeroShotClassifier,
    path: PathLike,
    *,
    images: Sequence[Image.Image] = (),
    tolerance: float = TOLERANCE,
) -> ExportedOnnx:
    """Write a classifier (backbone, adapter, class head, temperature) as one ONNX file.

    It takes `pixels`, float32 (N, 3, H, W) for any N, and gives `probabilities` and `logits`,
    (N, C) each. All is computed in float32, whatever the model is in; the classifier stays as it
    is.

    Args:
        classifier: with its image processor.
        path: of the file, which appears whole or not at all.
        images: in RGB, to compare torch and onnxruntime on; none for ones that are drawn.
        tolerance: what a probability may differ by.

    Raises:
        ResiDualError: no image processor, or one that does more than resize, crop and normalise; a
            tower that takes no plain images, is larger than 2 GiB or that torch cannot export; a
            graph that answers otherwise than torch.
    """
    start = time.perf_counter()
    if classifier.image_processor is None:
        raise no_processor()
    anatomy = find_tower(classifier.model)
    if "spatial_shapes" in anatomy.inputs:
        raise ResiDualError(
            f"wanted a tower that takes images (N, 3, H, W), got {anatomy.architecture}, which "
            "takes patches of images of any shape: its readout cannot be one file for one size."
        )
    preparation = Preparation.of(classifier.image_processor)
    pixels = pixel_values(classifier.image_processor, images or _drawn()).float()
    dtype = str(next(classifier.model.parameters()).dtype).removeprefix("torch.")
    graph = ClassifierGraph(in_float32(classifier))
    check_size(graph)
    # before `ready`, which takes the adapters away: held-out scores are of those that are active
    height, width = pixels.shape[-2:]
    facts = _metadata_of(classifier, preparation, (height, width))
    with atomic_file(path) as temporary, graph.ready():
        program = _traced(graph, pixels[:1].repeat(2, 1, 1, 1))  # one would be a constant
        model = _with_metadata(program, facts)
        program.save(str(temporary), external_data=False)
        del program, model
        found = _compared(graph, running(temporary), pixels, tolerance)
        size = temporary.stat().st_size
    return ExportedOnnx(
        path=Path(path),
        bytes=size,
        size=(height, width),
        classes=len(classifier.class_names),
        multi_label=classifier.multi_label,
        images=len(pixels),
        probability_difference=found[0],
        logit_difference=found[1],
        dtype=dtype,
        seconds=time.perf_counter() - start,
    )


def _metadata_of(
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
    plausible = {}
    for coverage in COVERAGES:
        with suppress(ResiDualError):  # too few images for it, or none that the fit did not see
            sets = classifier.sets(coverage, by)
            assert isinstance(sets, PredictionSets)
            plausible[str(coverage)] = math.exp(-sets.threshold)
    threshold: float | list[float] | None = classifier.labelling.threshold
    if classifier.thresholds is not None:
        threshold = classifier.thresholds.double().sigmoid().tolist()
    return {
        "made_by": f"residual-peft {version('residual-peft')}",
        "class_names": list(classifier.class_names),
        "preprocessing": asdict(preparation),
        "size": list(size),
        "several_labels": classifier.multi_label,
        "threshold": threshold,
        "plausible": plausible,
        "plausible_by": by if plausible else None,
    }


def _drawn() -> list[Image.Image]:
    """Pictures of soft and hard noise: as different as photographs, and the same everywhere."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(TRIED):
        side = 3 + number**2
        noise = generator.integers(0, 256, (side, side, 3), np.uint8)
        found.append(Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC))
    return found


def _traced(graph: ClassifierGraph, pixels: Tensor) -> Any:
    """Torch's exporter's program; refused where it cannot follow the model."""
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                graph,
                (pixels,),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise _cannot(graph, reason) from error
    if isinstance(program.model.graph.inputs[0].shape[0], int):  # it gives in without a word
        raise _cannot(graph, "it takes the number of images for a constant")
    return program


def _cannot(graph: ClassifierGraph, reason: str) -> ResiDualError:
    return ResiDualError(
        f"torch {torch.__version__} cannot export the image tower {graph.anatomy.architecture} to "
        f"ONNX ({reason}): take another release of torch and onnxscript, or another backbone."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of torchvision, of constants and of names in torch that will change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = {logger: logger.level for logger in loggers}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _with_metadata(program: Any, facts: Mapping[str, Any]) -> Any:
    """The program's model with our metadata in place of the exporter's.

    That names for each node the files of this machine that it comes from.
    """
    model = program.model
    for holder in (model.graph, *model.functions.values()):
        holder.metadata_props.clear()
        for node in holder:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*holder.inputs, *getattr(holder, "initializers", {}).values()):
            value.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update({name: json.dumps(fact) for name, fact in facts.items()})
    return model


def running(path: str | os.PathLike[str]) -> Any:
    """A session of onnxruntime on the CPU, with as many threads as torch has here."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)


def _compared(
    graph: ClassifierGraph, session: Any, pixels: Tensor, tolerance: float
) -> tuple[float, float]:
    """How far onnxruntime is from torch: in probabilities, and in logits as a share."""
    worst = np.zeros(2)
    for part in (pixels[:1], pixels[1:]):
        if not len(part):
            continue
        probabilities, logits = (found.numpy() for found in graph(part))
        got = session.run(list(OUTPUTS), {INPUT: part.numpy()})
        largest = max(1.0, float(np.abs(logits).max()))
        found = (_apart(got[0], probabilities), _apart(got[1], logits) / largest)
        worst = np.maximum(worst, found)  # NaN stays NaN
    if not (worst <= tolerance).all():
        raise ResiDualError(
            f"wanted a graph that answers as torch does, to {tolerance:g}, got probabilities that "
            f"differ by {worst[0]:.2g} and logits by {worst[1]:.2g} of the largest on "
            f"{len(pixels)} images: nothing was written. Compare them on images of your own "
            "(--images), or take other releases of torch, onnxscript and onnxruntime "
            "(constraints.txt names tested ones)."
        )
    return float(worst[0]), float(worst[1])


def _apart(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    return float(np.abs(got.astype(float) - expected.astype(float)).max())
