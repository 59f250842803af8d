"""A linear map of the embedding, held to the identity."""

from ...classifiers.heads.linear_map import fit_linear_map
from .method import Method, Outcome, of_head
from .rows import Rows

NAME = "map-embedding"


def _linear_map(rows: Rows) -> Outcome:
    done = fit_linear_map(
        rows.features("embedding"),
        rows.labels,
        rows.classifier.class_embeddings,
        logit_scale=float(rows.classifier.logit_scale),
        groups=rows.groups,
        class_weights=rows.class_weights,
    )
    return of_head(NAME, rows, "embedding", done, strength=done.strength)


LINEAR_MAP = Method(
    "a linear map of the embedding, held to the identity",
    _linear_map,
    many_labels=False,
    of_texts=True,
)
