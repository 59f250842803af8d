"""Logistic regression on the embedding or on coordinates."""

from typing import Any

from ...classifiers.heads import fit_ridge
from ...classifiers.heads.logistic import fit_logistic
from ...classifiers.trained_head import Features
from .method import Method, Outcome, of_head, title_of
from .rows import Rows


def logistic(name: str, features: Features) -> Method:
    """The method of a name, on some features."""

    def fit(rows: Rows) -> Outcome:
        values = rows.features(features)
        options: dict[str, Any] = {"groups": rows.groups, "class_weights": rows.class_weights}
        start = fit_ridge(
            values, rows.labels, rows.class_count, zero_shot=rows.zero_shot, **options
        ).head
        done = fit_logistic(
            values,
            rows.labels,
            rows.class_count,
            zero_shot=rows.zero_shot,
            start=start,
            tolerance=1e-5,
            **options,
        )
        return of_head(name, rows, features, done, strength=done.strength)

    return Method(title_of("logistic regression", features), fit)
