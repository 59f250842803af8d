"""Logistic regression on the embedding or on coordinates."""

from typing import Any

from ...classifiers.heads import fit_ridge
from ...classifiers.heads.head import spread
from ...classifiers.heads.logistic import fit_logistic
from ...classifiers.trained_head import Features
from .method import Method, Outcome, title_of, trained
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
        head = done.head
        if features == "coordinates":
            head = spread(head, rows.columns(), rows.data.coordinates.shape[1])
        return Outcome(
            name,
            done.left_out,
            done.parameter_count,
            head=trained(head, features, name, done.left_out),
            strength=done.strength,
        )

    return Method(title_of("logistic regression", features), fit)
