"""A ridge on the embedding or on coordinates, in closed form."""

from typing import Any

from ...classifiers.heads import choose_ridge
from ...classifiers.heads.head import spread
from ...classifiers.trained_head import Features
from .method import Method, Outcome, title_of, trained
from .rows import Rows


def ridge(name: str, features: Features, kinds: tuple[str, ...] = ()) -> Method:
    """The method of a name, on some features, of units of some kinds (all when empty)."""

    def fit(rows: Rows) -> Outcome:
        values, columns = rows.features(features, kinds), rows.columns(kinds)
        common: dict[str, Any] = {
            "zero_shot": rows.zero_shot,
            "class_weights": rows.class_weights,
            "residual": False if rows.by_labels else None,
        }
        common |= {"groups": rows.groups, "folds": rows.fold}
        choice = choose_ridge({name: values}, rows.labels, rows.class_count, **common)
        done = choice.fit
        left = done.left_out if done.by_folds is None else done.by_folds
        head = done.head
        if features == "coordinates":
            head = spread(head, columns, rows.data.coordinates.shape[1])
        return Outcome(
            name,
            left,
            done.parameter_count,
            head=trained(head, features, name, done.left_out),
            strength=float(done.alpha.median()),
            notes=done.notes,
            power=done.power,
            settings=done.settings,
            columns=columns if features == "coordinates" else None,
        )

    return Method(title_of("ridge", features, kinds), fit, ridge=(features, kinds))
