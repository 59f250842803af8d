"""Which method suits the images of a fit, by what each says of training images it did not see."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..classifiers.heads.choosing import Candidate, best_recall, fewest_as_good, some_rows
from ..data.progress import Bar
from ..errors import ResiDualError
from .methods import METHODS, Outcome, Rows
from .methods.rows import WITHOUT_TEXTS

AT_MOST = 2000
"""Images that methods are compared on; the one that is chosen is then fitted on all of them."""
AUTO = "auto"
WITHOUT_CHOICE = "ridge"
"""Where no class has a second image, copies and those of its group aside, nothing can be left out:
what is best there on the digits."""


@dataclass(frozen=True)
class Choice:
    """Methods compared, and the one that was chosen."""

    # of every method that was tried, in the order of `METHODS`, fitted on the images that they were
    # compared on
    outcomes: tuple[Outcome, ...]
    chosen: Outcome  # the outcome of the chosen one, fitted on all images
    images: int  # how many images the comparison was on


def choose(
    rows: Rows,
    methods: Sequence[str] | None = None,
    *,
    at_most: int = AT_MOST,
    progress: bool = False,
) -> Choice:
    """Fit every method and take the one of the least left-out log-loss; ties go to fewer numbers.

    Where classes weigh differently, the rare ones more, the one of the best mean per-class recall;
    ties then go to the log-loss (`best_recall`). No image but those given plays a part. Methods are
    names of `METHODS`; None for all that are tried, and suit the labels. Of more than `at_most`
    images a draw of each class is compared on.
    """
    if methods is None:
        every = method_names(rows.classifier.multi_label, rows.means)
        methods = [name for name in every if METHODS[name].tried]
    names = list(methods)
    check_methods(names, rows.classifier.multi_label, rows.means)
    index = some_rows(rows.labels, rows.class_count, at_most)
    part = rows if index is None else rows.some(index)
    outcomes = run_methods(names, part, progress=progress)
    best = _best(outcomes, part)
    if index is not None:
        (best,) = run_methods([best.method], rows, progress=progress)
    return Choice(tuple(outcomes), best, len(part.labels))


def run_methods(names: Sequence[str], rows: Rows, *, progress: bool = False) -> list[Outcome]:
    """The outcome of each method on some images, with a bar that counts methods."""
    with Bar(desc="Fitting", unit="method", total=len(names), disable=not progress) as bar:
        found = []
        for name in names:
            bar.set_postfix_str(name)
            found.append(METHODS[name].run(rows))
            bar.update()
        return found


def _best(able: list[Outcome], rows: Rows) -> Outcome:
    told = torch.stack([outcome.left_out.known for outcome in able]).all(0).any()
    if rows.fold is None or not told:  # such as three copies of one image of each class
        fixed = [outcome for outcome in able if outcome.method == WITHOUT_CHOICE]
        return fixed[0] if fixed else able[-1]
    candidates = [Candidate(one.method, one.left_out, one.parameter_count) for one in able]
    balanced = rows.class_weights is not None
    return able[best_recall(candidates) if balanced else fewest_as_good(candidates)]


def method_names(several_labels: bool = False, means: bool = False) -> list[str]:
    """Methods that suit the labels, and classes that may be means, in the order of a table."""
    return [
        name
        for name, method in METHODS.items()
        if (method.many_labels or not several_labels) and not (means and method.of_texts)
    ]


def check_methods(names: Sequence[str], several_labels: bool = False, means: bool = False) -> None:
    """Raise a ResiDualError for names that are no methods, or none for such labels or classes."""
    known = method_names(several_labels)
    for name in names:
        if name not in METHODS:
            raise ResiDualError(
                f"wanted a method of {', '.join(METHODS)}, or {AUTO} for what suits the images "
                f"best, got {name!r}."
            )
        if name not in known:
            raise ResiDualError(
                f"the method {name} is for one label per image, these have several: take one of "
                f"{', '.join(known)}."
            )
        if means and METHODS[name].of_texts:
            raise ResiDualError(WITHOUT_TEXTS.format(METHODS[name].title))
