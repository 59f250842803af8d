"""A linear map of the embedding, held to the identity."""

from ...classifiers.heads.linear_map import fit_linear_map
from .method import Method, Outcome, trained
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
    return Outcome(
        NAME,
        done.left_out,
        done.parameter_count,
        head=trained(done.head, "embedding", NAME, done.left_out),
        strength=done.strength,
    )


LINEAR_MAP = Method(
    "a linear map of the embedding, held to the identity",
    _linear_map,
    many_labels=False,
    of_texts=True,
)
