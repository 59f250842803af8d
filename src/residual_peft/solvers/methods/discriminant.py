"""Discriminant analysis on the embedding."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...classifiers.heads.discriminant import fit_discriminant
from ...classifiers.heads.finishing import across_folds
from ...classifiers.heads.left_out import LeftOut
from ...errors import ResiDualError
from .method import Method, Outcome, finished, trained
from .rows import Rows


def _discriminant(rows: Rows) -> Outcome:
    values = rows.features("embedding")
    options: dict[str, Any] = {"class_weights": rows.class_weights}
    done = fit_discriminant(
        values, rows.labels, rows.class_count, zero_shot=rows.zero_shot, **options
    )
    left = done.left_out
    if rows.fold is not None:

        def outside(kept: Tensor) -> Tensor:
            some = fit_discriminant(values[kept], rows.labels[kept], rows.class_count, **options)
            return replace(some.head, temperature=1.0).logits(values[~kept].double())

        try:
            left = finished(rows, across_folds(outside, rows.fold))
        except ResiDualError:  # a class lies in one fold alone
            left = _singly(rows, done.left_out)
    else:
        left = _singly(rows, left)
    return Outcome(
        "discriminant",
        left,
        done.parameter_count,
        head=trained(done.head, "embedding", "discriminant", left),
        strength=done.shrinkage,
    )


def _singly(rows: Rows, left_out: LeftOut) -> LeftOut:
    """Leave-one-out, which says nothing of images whose likes were learned from."""
    if rows.groups is None:
        return left_out
    return replace(left_out, known=torch.zeros_like(left_out.known))


DISCRIMINANT = Method("discriminant analysis on the embedding", _discriminant, many_labels=False)
