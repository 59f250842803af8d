"""A ridge on the embedding or on coordinates, in closed form."""

from typing import Any

from ...classifiers.heads import choose_ridge
from ...classifiers.heads.jackknife_plus import RidgeWithout
from ...classifiers.trained_head import Features
from .method import Method, Outcome, of_head, title_of
from .rows import Rows


def ridge(name: str, features: Features, kinds: tuple[str, ...] = ()) -> Method:
    """The method of a name, on some features, of units of some kinds (all when empty)."""

    def fit(rows: Rows) -> Outcome:
        values = rows.features(features, kinds)
        own: dict[str, Any] = {
            "zero_shot": rows.zero_shot,
            "class_weights": rows.class_weights,
            "groups": rows.groups,
        }
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
