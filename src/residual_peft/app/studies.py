"""From names to an analysis of a model's heads on some data."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..analysis import (
    AblationCurve,
    Contributions,
    DimensionProfile,
    Explanation,
    SelectionStudy,
    SimilarityMatrix,
    TextDictionary,
    coarse_optimum,
    collect_contributions,
    compare_selections,
    dimension_profile,
    explain_units,
    layer_ablation,
    spectral_similarity,
)
from ..analysis.describing import dictionary_if_any
from ..classifiers.backbones import Backbone, load_backbone
from ..classifiers.class_means import class_means_of
from ..classifiers.prompts import DEFAULT_TEMPLATES
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import ImageData, SkippedImage, batches, load_data
from ..data.checking import check_skipped
from ..data.labels import ONE_LABEL, check_same
from ..errors import ResiDualError, counted
from ..hub.files import PathLike, atomic_directory, name_of, plain_of, write_json
from ..reporting.figures import (
    draw_ablation,
    draw_dimension,
    draw_selection,
    draw_similarity,
    save_figure,
)
from .fitting import check_without_texts

IMAGES = 5000
OPTIMUM_IMAGES = 1000
STUDY = "study.json"
PARTS = ("train", "validation", "test")
FOR_ONE = (
    "analyses from names are for one. In Python, most of residual_peft.analysis needs no labels"
)


@dataclass(frozen=True)
class ModelStudy:
    """What a model's heads know of some data."""

    model: str  # its name
    dataset: str  # what to call the data
    class_names: tuple[str, ...]  # C names
    images: dict[str, int]  # split -> how many images were read
    dimension: DimensionProfile  # of every head and MLP, on training images
    similarity: SimilarityMatrix  # spectral cosine of all heads against all
    # accuracy on test images with only the heads that training images chose
    selection: SelectionStudy
    # accuracy without each layer, and without ever more layers from the last on; at their means
    ablations: tuple[AblationCurve, ...]
    words: tuple[Explanation, ...]  # texts for every head, by SOMP
    skipped: tuple[SkippedImage, ...] = ()  # images that could not be read

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: all of it."""
        return {
            "skipped_as_unreadable": len(self.skipped),
            "model": self.model,
            "dataset": self.dataset,
            "class_names": list(self.class_names),
            "images": self.images,
            "dimension": {"share": self.dimension.share, "units": self.dimension.rows()},
            "similarity": {"measure": self.similarity.measure, "pairs": self.similarity.rows()},
            "selection": self.selection.as_dict(),
            "ablations": [curve.as_dict() for curve in self.ablations],
            "words": [plain_of(item) for item in self.words],
        }

    def cells(self) -> list[list[str]]:
        """For a table: budgets of heads and the accuracy of S, U, U|T and R with them."""
        columns = [self.selection.curve(letter).points for letter in ("S", "U", "U|T", "R")]
        # of few heads, several budgets are the same number
        rows = {points[0].units: points for points in zip(*columns, strict=True)}
        return [
            [
                "1 head" if units == 1 else f"{units} heads",
                *(f"{point.accuracy:.3f}" for point in points),
            ]
            for units, points in rows.items()
        ]

    def lines(self) -> list[str]:
        """For people: what the whole model and its heads are right on, and words of the best."""
        lines = {line.letter: line.accuracy for line in self.selection.lines}
        best = self.selection.curve("S")
        ranking = next(r for r in self.selection.rankings if r.method == best.method)
        words_of = {item.unit: item.texts for item in self.words}
        skipped = [f"{counted(len(self.skipped), 'image')} left out as unreadable."]
        return [
            *(skipped if self.skipped else ()),
            f"Accuracy on {self.images['test']} test images: whole model {lines['B']:.3f}, all "
            f"heads alone {lines['H']:.3f}, one gain per head {lines['O']:.3f}.",
            *(f"{unit}: {', '.join(words_of.get(unit, ())[:3])}" for unit in ranking.top(5)),
        ]


def study_model(
    model: str,
    data: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    **options: Any,
) -> ModelStudy:
    """`study` of a model and images by name, as `load_backbone` and `load_data` take them.

    Raises:
        ResiDualError: bad data, or a model that is not there; as `study`.
    """
    shared = ("seed", "max_bad", "strict", "progress")
    found = load_data(
        data,
        image_column=image_column,
        label_column=label_column,
        **{name: options[name] for name in shared if name in options},
    )
    return study(load_backbone(model), found, **options)


def study(
    backbone: Backbone,
    data: ImageData,
    *,
    templates: Sequence[str] | None = None,
    words: str | os.PathLike[str] | Iterable[str] | None = None,
    images: int = IMAGES,
    seed: int = 0,
    progress: bool = False,
    max_bad: float = 0.05,
    strict: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> ModelStudy:
    """Dimension, similarity, selection, ablation and words of a CLIP's heads on labelled images.

    Heads are ranked, described and measured on training images, and scored on test images; the
    coarse optimum is fitted on training images and chosen on validation images. Each image is read
    once, at most `images` of each split, drawn at random. Words are as for `dictionary_for`,
    templates the default ones when None; a share of `max_bad` of the images may be unreadable and
    is left out, unless `strict`; `num_workers` as `batches` has it.

    Raises:
        ResiDualError: a split that is missing, fewer than three images asked for, images with
            several labels, or too many that cannot be read.
    """
    if images < 3:
        raise ResiDualError(f"wanted at least three images of each split, got images={images}.")
    check_same(ONE_LABEL, data.labelling, FOR_ONE)
    for split in PARTS:
        data[split]  # says which one is missing
    classifier, dictionary = _texts(backbone, data, templates, words)  # before any work
    options = {"skip": not strict, "batch_size": batch_size, "num_workers": num_workers}
    train, validation, test, skipped = _read(backbone, data, images, seed, progress, options)
    check_skipped(skipped, max_bad, sum(map(len, data.splits.values())), data.source)
    if classifier is None:
        assert train.labels is not None  # load_data gives every image one
        means = class_means_of(train.readout, train.labels, data.class_names)
        classifier = ZeroShotClassifier(backbone.model, data.class_names, means)
    embeddings = classifier.class_embeddings
    few = train.rows(_drawn(len(train), OPTIMUM_IMAGES, seed))  # N U² numbers at every step
    optimum = coarse_optimum(few, validation, embeddings, logit_scale=classifier.logit_scale)
    heads = train.select(["head"])
    by_mean: dict[str, Any] = {"ablation": "mean", "reference": train}
    described: Iterable[Explanation] = ()
    if dictionary is not None:
        steps = min(5, len(dictionary))
        described = explain_units(heads, dictionary, steps=steps, progress=progress)
    return ModelStudy(
        model=name_of(backbone.name) if Path(backbone.name).is_dir() else backbone.name,
        dataset=name_of(data.source),
        class_names=data.class_names,
        images={"train": len(train), "validation": len(validation), "test": len(test)},
        skipped=skipped,
        dimension=dimension_profile(
            train.select(["head", "mlp"]), two_nn_images=min(images, len(train)), progress=progress
        ),
        similarity=spectral_similarity(heads.basis(backbone.model)),
        selection=compare_selections(train, test, embeddings, seed=seed, optimum=optimum),
        ablations=(
            layer_ablation(test, embeddings, **by_mean),
            layer_ablation(test, embeddings, cumulative="from_last", **by_mean),
        ),
        words=tuple(described),
    )


def _texts(
    backbone: Backbone, data: ImageData, templates: Sequence[str] | None, words: Any
) -> tuple[ZeroShotClassifier | None, TextDictionary | None]:
    """Classes by their names, None where these are no texts, and what heads are described with."""
    dictionary = dictionary_if_any(backbone, words)
    if backbone.tokenizer is None:
        check_without_texts(backbone, data, templates, words)
        return None, dictionary
    texts = (backbone.tokenizer, data.class_names, templates or DEFAULT_TEMPLATES)
    return ZeroShotClassifier.from_text(backbone.model, *texts), dictionary


def _read(
    backbone: Backbone,
    data: ImageData,
    images: int,
    seed: int,
    progress: bool,
    options: dict[str, Any],
) -> tuple[Contributions, Contributions, Contributions, tuple[SkippedImage, ...]]:
    """What the units wrote for training, validation and test images, and what could not be read."""
    loaders = []
    for split in PARTS:
        rows = data[split]
        if len(rows) > images:
            rows = rows.select(_drawn(len(rows), images, seed).tolist())
        options["name"] = f"the split '{split}'"
        loaders.append(batches(rows, backbone.image_processor, **options))
    train, validation, test = (
        collect_contributions(backbone.model, loader, progress=progress) for loader in loaders
    )
    missed = [SkippedImage(file, why) for part in loaders for _, file, why in part.skipped]
    return train, validation, test, (*data.skipped, *missed)


def write_study(study: ModelStudy, out: PathLike) -> list[str]:
    """Write `study.json` and the paper's figures, whole or not at all; the files' names."""
    drawings: dict[str, Any] = {
        "dimension.png": lambda axis: draw_dimension(study.dimension, axis),
        "similarity.png": lambda axis: draw_similarity(study.similarity, axis),
        "selection.png": lambda axis: draw_selection(study.selection, axis),
        "ablation.png": lambda axis: draw_ablation(study.ablations[0], axis),
        "ablation_cumulative.png": lambda axis: draw_ablation(study.ablations[1], axis),
    }
    with atomic_directory(out) as folder:
        write_json(folder / STUDY, study.as_dict())
        for name, draw in drawings.items():
            save_figure(folder / name, draw)
    return [STUDY, *drawings]


def _drawn(total: int, count: int, seed: int) -> torch.Tensor:
    """At most so many of `total` rows, drawn at random, in their order."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values
