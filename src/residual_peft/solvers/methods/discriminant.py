"""Discriminant analysis on the embedding."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...classifiers.heads.discriminant import fit_discriminant
from ...classifiers.heads.finishing import across_folds
from ...errors import ResiDualError
from .method import Method, Outcome, of_head, tempered
from .rows import Rows


def _discriminant(rows: Rows) -> Outcome:
    values = rows.features("embedding")
    options: dict[str, Any] = {"class_weights": rows.class_weights}
    done = fit_discriminant(
        values, rows.labels, rows.class_count, zero_shot=rows.zero_shot, **options
    )
    head, left = done.head, done.left_out
    if rows.groups is not None:  # it says nothing of images whose likes were learned from
        left = replace(left, known=torch.zeros_like(left.known))
    if rows.fold is not None:

        def outside(kept: Tensor) -> Tensor:
            some = fit_discriminant(values[kept], rows.labels[kept], rows.class_count, **options)
            return replace(some.head, temperature=1.0).logits(values[~kept].double())

        try:
            temperature, left = tempered(rows, across_folds(outside, rows.fold))
            if rows.groups is not None:  # images left out singly make it too sure of new groups
                head = replace(head, text_weight=0.0, temperature=temperature)
        except ResiDualError:  # a class lies in one fold alone
            pass
    own = done.left_out if rows.groups is None else left
    told = replace(done, head=head, left_out=own)
    strength = done.model.shrinkage
    return of_head("discriminant", rows, "embedding", told, left=left, strength=strength)


DISCRIMINANT = Method("discriminant analysis on the embedding", _discriminant, many_labels=False)
