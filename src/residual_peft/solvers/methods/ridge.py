"""A ridge on the embedding or on coordinates, in closed form."""

from ...classifiers.heads import choose_ridge
from ...classifiers.trained_head import Features
from .method import Method, Outcome, of_head, title_of
from .rows import Rows


def ridge(name: str, features: Features, kinds: tuple[str, ...] = ()) -> Method:
    """The method of a name, on some features, of units of some kinds (all when empty)."""

    def fit(rows: Rows) -> Outcome:
        values = rows.features(features, kinds)
        done = choose_ridge(
            {name: values},
            rows.labels,
            rows.class_count,
            zero_shot=rows.zero_shot,
            class_weights=rows.class_weights,
            residual=False if rows.by_labels else None,
            groups=rows.groups,
            folds=rows.fold,
        ).fit
        left = done.left_out if done.by_folds is None else done.by_folds
        strength = float(done.alpha.median())
        more = {"notes": done.notes, "power": done.power, "settings": done.settings}
        return of_head(name, rows, features, done, kinds, left, strength=strength, **more)

    return Method(title_of("ridge", features, kinds), fit, ridge=(features, kinds))
