"""Images of some data that a model sees as nearly the same."""

import os
from collections.abc import Callable
from typing import Any

from datasets import concatenate_datasets

from ..analysis.near_copies import near_copies
from ..bases.reading import reading
from ..bases.rows import Rows
from ..classifiers.backbones import load_backbone
from ..data import ImageData, ProcessedImages, batches
from ..data.survey import Copies, Survey, groups_of


def near_groups(
    images: ImageData,
    survey: Survey,
    model: str | os.PathLike[str],
    alike: float,
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool | Callable[[int], object] = False,
) -> tuple[Copies, ...]:
    """Groups of images that are nearly the same; those of one and the same file are left out.

    Raises:
        ResiDualError: no such model, or no image that can be read.
    """
    backbone = load_backbone(model)
    rows = concatenate_datasets([part.select_columns(["image"]) for part in images.splits.values()])
    loader = batches(
        ProcessedImages(rows, backbone.image_processor, "the data"),
        batch_size=batch_size,
        num_workers=num_workers,
        skip=True,
    )
    embeddings, index = Rows(len(rows)), []
    options: dict[str, Any] = {"progress": progress, "description": "looking"}
    for seen in reading(backbone.model, None, loader, **options):
        assert seen.index is not None  # batches give it
        embeddings.add(seen.readout.cpu())
        index += seen.index.tolist()
    marks = near_copies(embeddings.joined(), alike).tolist()
    groups = groups_of(marks, [survey.places[row] for row in index])
    same = {place: number for number, group in enumerate(survey.copies) for place in group.places}
    return tuple(g for g in groups if len({same.get(place, place) for place in g.places}) > 1)
