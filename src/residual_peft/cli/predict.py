"""`residual-peft predict`."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import ResiDualError, counted, printable
from ..hub.places import check_place
from .commands import begin, example
from .options import DEVICE, PASSES, Adapter, with_options

if TYPE_CHECKING:
    from ..app.prediction import Answer, FilePredictor
    from ..classifiers.heads.conformal import By
    from ..classifiers.predictions import Prediction


@example("""residual-peft predict my-adapter photo.png 'photos/one/1*.png' notes.txt
photo.png: two 1.000, one 0.000, zero 0.000
photos/one/100.png: one 0.992, zero 0.008, two 0.000
photos/one/110.png: one 0.995, zero 0.005, two 0.000
...
notes.txt: not read (no such file)""")
@with_options(PASSES | DEVICE)
def predict(
    adapter: Adapter,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Files, folders (with all in them) or patterns such as 'photos/**/*.jpg'; - reads "
            "names from standard input, one a line.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line and image.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A table with a row per image.")] = False,
    top: Annotated[int, typer.Option(help="How many classes to name.", min=1)] = 3,
    sort_into: Annotated[
        Path | None,
        typer.Option(
            help="Copy the images into folders of their classes in this one, unsure ones into "
            "'unsure'; nothing is moved or written over."
        ),
    ] = None,
    sure: Annotated[
        float, typer.Option(help="Below this probability an image is unsure.", min=0, max=1)
    ] = 0.5,
    coverage: Annotated[
        float | None,
        typer.Option(help="Also name the classes that hold the right one this often, such as 0.9."),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(
            help="What these come from: held-out (images that nothing was fitted to: at least so "
            "often, if they came in no groups), jackknife+ or jackknife (images left out by turns: "
            "about so often); if left out, the first of them that the adapter can do."
        ),
    ] = None,
    none_of_these: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Say which images are none of the classes; so large a share of those that are, "
            "such as 0.05, may be called so by mistake.",
        ),
    ] = None,
    *,
    options: dict[str, Any],
) -> None:
    """Classify images: a line each, with the classes' names beside their probabilities.

    A file that cannot be read is a line with the reason, and no end; exit status 2 where none can.
    """
    if as_json and as_csv:
        raise ResiDualError("wanted one of --json and --csv, got both.")
    if sort_into is not None:
        check_place(sort_into)
    _check_names(images, as_json or as_csv)
    begin(f"Classifying with {adapter}.")
    from ..app.prediction import FilePredictor

    predictor = FilePredictor(
        adapter,
        sort_into=sort_into,
        sure=sure,
        coverage=coverage,
        sets=cast("By | None", sets),
        none_of_these=none_of_these,
        **options,
    )
    write: Callable[[Answer], None] = partial(_write, top, as_json)
    if as_csv:
        multi_label, sets_too = predictor.classifier.multi_label, coverage is not None
        write = _as_table(top, multi_label, sets_too, none_of_these is not None)
    # where the answers go elsewhere, the bar is not between them
    elsewhere = sys.stderr.isatty() and not sys.stdout.isatty()
    names = _from_input(images) if "-" in images else images
    total = unread = 0
    for answer in predictor.answers(names, progress=elsewhere):
        write(answer)
        total += 1
        unread += answer.prediction is None
    if total == unread:
        none = {0: "no file was named: none could", 1: "the one file could not"}
        which = none.get(total, f"none of {counted(total, 'file')} could")
        raise ResiDualError(f"wanted images to classify, but {which} be read; each line says why.")
    print(_summary(total, unread, predictor), file=sys.stderr)


def _check_names(images: list[str], printed: bool) -> None:
    """Refuse a table to write to among the images: what is printed goes there by the shell."""
    endings = (".csv", ".json", ".jsonl")
    meant = (name for name in images if name.lower().endswith(endings) and not os.path.exists(name))
    if printed and (name := next(meant, None)) is not None:
        raise ResiDualError(
            f"wanted images, got '{printable(name)}', which is not there: --csv and --json print, "
            f"and > {printable(name)} behind the command writes that to a file."
        )


def _from_input(images: list[str]) -> Iterator[str]:
    """The names, in place of - those of standard input: a line each, or ended by null bytes."""
    for image in images:
        if image != "-":
            yield image
            continue
        for line in sys.stdin.buffer:
            for name in line.rstrip(b"\r\n").split(b"\0"):
                if name:
                    yield os.fsdecode(name)


def _write(top: int, as_json: bool, answer: "Answer") -> None:
    found = answer.prediction
    if as_json:
        said = json.dumps(answer.as_dict(top), ensure_ascii=False)
    elif found is None:
        said = printable(f"{answer.file}: not read ({answer.reason})")
    else:
        said = f"{answer.file}: {found.told(top)}"
        if found.plausible is not None:
            said += f"; plausible: {', '.join(found.plausible) or 'none of the classes'}"
        said = printable(said)
    print(said, flush=True)


_CELLS: "dict[str, Callable[[Prediction], str]]" = {
    # by thresholds of their own, which the probabilities do not tell
    "labels": lambda found: "; ".join(found.labels),
    # an empty set has an empty cell, and what it is made by beside it
    "plausible": lambda found: "; ".join(found.plausible or ()),
    "plausible_by": lambda found: found.plausible_by or "",
    "none_of_these": lambda found: str(found.none_of_these).lower(),
}


def _as_table(top: int, multi_label: bool, sets: bool, none: bool) -> "Callable[[Answer], None]":
    """Columns file, class and probability by rank, what else there is or was asked for, error.

    With several labels per image one of these: which of the classes it has, maybe none.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    headers = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("label", "score")]
    more = ["labels"] * multi_label + ["plausible", "plausible_by"] * sets
    more += ["none_of_these"] * none
    writer.writerow(["file", *headers, *more, "error"])

    def write(answer: "Answer") -> None:
        found = answer.prediction
        ranked = [] if found is None else found.top(top)
        cells = [cell for name, score in ranked for cell in (name, f"{score:.6f}")]
        cells += [""] * (2 * top - len(cells))
        cells += ["" if found is None else _CELLS[name](found) for name in more]
        writer.writerow([answer.file, *cells, answer.reason])
        sys.stdout.flush()

    return write


def _summary(total: int, unread: int, predictor: "FilePredictor") -> str:
    said = f"{counted(total - unread, 'image')} classified"
    said += f", {counted(unread, 'file')} not read" if unread else ""
    if (sorting := predictor.sorting) is not None:
        said += f"; {sorting.copied:,} copied into {sorting.root}"
        said += f", {sorting.present:,} already there" if sorting.present else ""
    if predictor.sets is not None:
        said += f"; plausible classes {predictor.sets.told}"
    return printable(f"{said}.")
