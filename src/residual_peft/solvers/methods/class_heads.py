"""Class heads as methods: a ridge, logistic regression, discriminant analysis, a linear map."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...classifiers.heads import choose_ridge, fit_ridge
from ...classifiers.heads.discriminant import fit_discriminant
from ...classifiers.heads.finishing import across_folds
from ...classifiers.heads.jackknife_plus import RidgeWithout
from ...classifiers.heads.linear_map import fit_linear_map
from ...classifiers.heads.logistic import fit_logistic
from ...classifiers.trained_head import Features
from ...errors import ResiDualError
from .method import Method, Outcome, of_head, tempered, title_of
from .rows import Rows


def ridge(name: str, features: Features, kinds: tuple[str, ...] = ()) -> Method:
    """The method of a name, on some features, of units of some kinds (all when empty)."""

    def fit(rows: Rows) -> Outcome:
        values, own = rows.features(features, kinds), rows.options
        residual = False if rows.by_labels else None
        counted = rows.labels, rows.class_count
        done = choose_ridge({name: values}, *counted, **own, residual=residual, folds=rows.fold).fit
        left = done.left_out if done.by_folds is None else done.by_folds

        def without() -> RidgeWithout:
            values = rows.features(features, kinds)  # not held until it is asked for
            columns = rows.columns(kinds) if features == "coordinates" else None
            return RidgeWithout.of(done, values, *counted, **own, columns=columns)

        more: dict[str, Any] = {
            "notes": done.notes,
            "power": done.power,
            "settings": done.settings,
            "strength": float(done.alpha.median()),
            "without": rows.classifier.labelling.where_one(without),
        }
        return of_head(name, rows, features, done, kinds, left, **more)

    return Method(title_of("ridge", features, kinds), fit, ridge=(features, kinds))


def logistic(name: str, features: Features) -> Method:
    """The method of a name, on some features."""

    def fit(rows: Rows) -> Outcome:
        given = rows.features(features), rows.labels, rows.class_count
        start = fit_ridge(*given, **rows.options).head
        done = fit_logistic(*given, start=start, tolerance=1e-5, **rows.options)
        return of_head(name, rows, features, done, strength=done.strength)

    return Method(title_of("logistic regression", features), fit)


def _discriminant(rows: Rows) -> Outcome:
    values, count, weights = rows.features("embedding"), rows.class_count, rows.class_weights
    done = fit_discriminant(
        values, rows.labels, count, zero_shot=rows.zero_shot, class_weights=weights
    )
    head, left = done.head, done.left_out
    if rows.groups is not None:  # it says nothing of images whose likes were learned from
        left = replace(left, known=torch.zeros_like(left.known))
    if rows.fold is not None:

        def outside(kept: Tensor) -> Tensor:
            some = fit_discriminant(values[kept], rows.labels[kept], count, class_weights=weights)
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


def _linear_map(rows: Rows) -> Outcome:
    done = fit_linear_map(
        rows.features("embedding"),
        rows.labels,
        rows.classifier.class_embeddings,
        logit_scale=float(rows.classifier.logit_scale),
        groups=rows.groups,
        class_weights=rows.class_weights,
    )
    return of_head("map-embedding", rows, "embedding", done, strength=done.strength)


LINEAR_MAP = Method(
    "a linear map of the embedding, held to the identity",
    _linear_map,
    many_labels=False,
    of_texts=True,
)
