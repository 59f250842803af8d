"""Labelled images -> one HTML file to look through: some of each class, and what is wrong."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from ..data import ImageData
from ..data.checking import undecoded
from ..data.images import to_rgb
from ..data.pictures import thumbnail
from ..data.survey import Copies, Place, Survey, came_in_of
from ..errors import ResiDualError
from ..hub.files import PathLike, name_of, path_of
from .html import environment, write_page

PICTURES = 1200
"""Pictures that a sheet may hold; at 5 to 10 kB each it stays a file to mail."""
PER_CLASS = 24
GROUPS = 20  # of copies, each kind
IN_GROUP = 6
SIDE = 112  # pixels

Rows = dict[str, Dataset]
"""Split -> its images as they are stored."""
Pictures = list[tuple[bytes, Place]]
"""Thumbnails, and the images that they are of."""
Strip = tuple[str, Pictures, int]
"""A class, some pictures of it, and how many images it has."""


def write_contact_sheet(
    path: PathLike,
    data: ImageData,
    survey: Survey,
    near: Sequence[Copies] = (),
    lines: Sequence[str] = (),
) -> Path:
    """Write the sheet, an HTML file that needs no other and shows small copies of the images.

    It is there whole or not at all; `near` are groups that are nearly the same, and `lines` what is
    said of the data.
    """
    target, source, rows = path_of(path), path_of(survey.source), _rows_of(data)
    copies = [group for group in survey.copies if group.across_splits or group.across_classes]
    template = environment().get_template("contact_sheet.html.jinja")
    text = template.render(
        # of a folder its name, and not where it lies on this machine
        heading=name_of(source) if source.exists() else survey.source,
        lines=lines,
        classes=list(_classes(rows, survey)),
        groups=[
            (
                heading,
                [_pictures(rows, group.places[:IN_GROUP]) for group in found[:GROUPS]],
                len(found),
            )
            for heading, found in (
                ("The same image in several splits or classes", copies),
                ("Nearly the same images", list(near)),
            )
            if found
        ],
    )
    write_page(target, text)
    return target


def _rows_of(data: ImageData) -> Rows:
    """The images as a survey counts them."""
    found: dict[str, list[Dataset]] = {}
    for split, part in data.splits.items():
        found.setdefault(came_in_of(data, split), []).append(undecoded(part))
    return {split: concatenate_datasets(parts) for split, parts in found.items()}


def _classes(rows: Rows, survey: Survey) -> Iterator[Strip]:
    """Some images of each class, spread over its rows; of fewer classes more."""
    each = max(1, min(PER_CLASS, PICTURES // len(survey.classes)))
    found: dict[str, list[Place]] = {name: [] for name in survey.classes}
    for place in survey.places:
        for name in place.classes:
            found[name].append(place)
    shown = sorted(found.items(), key=lambda item: -len(item[1]))
    for name, places in shown[:PICTURES]:
        step = max(1, len(places) // each)
        yield name, _pictures(rows, places[::step][:each]), len(places)


def _pictures(rows: Rows, places: Iterable[Place]) -> Pictures:
    """Thumbnails; what turns out to be unreadable is left out."""
    pictures = []
    for place in places:
        try:
            image = to_rgb(rows[place.split][place.row]["image"], place.file, least=2 * SIDE)
        except ResiDualError:
            continue
        pictures.append((thumbnail(image, SIDE), place))
    return pictures
