"""Data by name -> what they are like, and a contact sheet: a look before anything is fitted."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from ..data import ImageData, ProcessedImages, batches, load_data
from ..data.survey import Copies, Survey, copies_dicts, copies_lines, groups_of, survey
from ..errors import ResiDualError

ALIKE = 0.95
"""Cosine of two embeddings, each less the mean of all, from which images are nearly the same."""


@dataclass(frozen=True)
class Look:
    """What some data are like."""

    data: ImageData  # the images
    survey: Survey  # of them
    # groups of images that a model sees as nearly the same; None where none was asked
    near: tuple[Copies, ...] | None = None
    model: str | None = None  # its name

    def lines(self) -> list[str]:
        """For people."""
        lines = self.survey.lines()
        if self.near is not None:
            lines += copies_lines(self.near, "near copies", "near copy")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found = self.survey.as_dict()
        if self.near is not None:
            found |= {"model": self.model, "near_copies": copies_dicts(self.near)}
        return found

    def write_sheet(self, path: str | os.PathLike[str]) -> Path:
        """Write the contact sheet, one HTML file that needs no other; returns its path."""
        from ..reporting.contact_sheet import write_contact_sheet

        return write_contact_sheet(path, self.data, self.survey, self.near or (), self.lines())


def look(
    data: Any,
    *,
    model: str | os.PathLike[str] | None = None,
    alike: float = ALIKE,
    image_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool | Callable[[int], object] = False,
) -> Look:
    """Say what labelled images are like, whatever cannot be read among them.

    With a model, a name or directory, images that are nearly the same are found, from the cosine
    `alike` on (`near_copies`); without, only files that are the same byte for byte.

    Raises:
        ResiDualError: as `load_data` without regard to how many cannot be read; no such model.
    """
    if not -1 < alike < 1:
        raise ResiDualError(f"alike: wanted a cosine between -1 and 1, got {alike}.")
    images = load_data(
        data,
        image_column=image_column,
        label_column=label_column,
        validation=0,
        test=0,
        max_bad=1,
        unread_classes=True,
        progress=progress,
    )
    found = survey(images)
    if model is None:
        return Look(images, found)
    near = _near_groups(images, found, model, alike, batch_size, num_workers, progress)
    return Look(images, found, near, str(model))


def _near_groups(
    images: ImageData,
    survey: Survey,
    model: str | os.PathLike[str],
    alike: float,
    batch_size: int,
    num_workers: int | None,
    progress: bool | Callable[[int], object],
) -> tuple[Copies, ...]:
    """Groups of images that are nearly the same; those of one and the same file are left out.

    Raises:
        ResiDualError: no such model, or no image that can be read.
    """
    # models and all that, which a look alone does without
    from ..analysis.near_copies import near_copies
    from ..bases.reading import reading
    from ..bases.rows import Rows
    from ..classifiers.backbones import load_backbone

    backbone = load_backbone(model)
    rows = concatenate_datasets([part.select_columns(["image"]) for part in images.splits.values()])
    loader = batches(
        ProcessedImages(rows, backbone.image_processor, "the data"),
        batch_size=batch_size,
        num_workers=num_workers,
        skip=True,
    )
    embeddings, index = Rows(len(rows)), []
    for seen in reading(backbone.model, None, loader, progress=progress, description="looking"):
        assert seen.index is not None  # batches give it
        embeddings.add(seen.readout.cpu())
        index += seen.index.tolist()
    marks = near_copies(embeddings.joined(), alike).tolist()
    groups = groups_of(marks, [survey.places[row] for row in index])
    same = {place: number for number, group in enumerate(survey.copies) for place in group.places}
    return tuple(g for g in groups if len({same.get(place, place) for place in g.places}) > 1)
