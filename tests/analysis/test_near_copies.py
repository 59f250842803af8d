"""Nearly the same: by cosines less the mean, also by way of others."""

import itertools

import numpy as np
import torch

from residual_peft.analysis.near_copies import near_copies
from tests.pairs import table


def slow(embeddings: torch.Tensor, alike: float) -> list[set[int]]:
    """By definition: all pairs in float64, groups joined until none share an image."""
    rows = embeddings.double().numpy()
    rows = rows - rows.mean(0)
    groups = [{number} for number in range(len(rows))]
    for a, b in itertools.combinations(range(len(rows)), 2):
        if rows[a] @ rows[b] / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b]) >= alike:
            joined = [group for group in groups if a in group or b in group]
            groups = [group for group in groups if group not in joined]
            groups.append(set().union(*joined))
    return groups


@table("alike", [0.3, 0.9, 0.99])
def test_groups_are_those_by_definition(alike: float) -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(12, 16, generator=generator)
    noise = torch.randn(60, 16, generator=generator) * torch.rand(60, 1, generator=generator)
    embeddings = base.repeat_interleave(5, 0) + 0.5 * noise + 20  # a narrow cone
    labels = near_copies(embeddings, alike)
    found = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
    assert found == set(map(frozenset, slow(embeddings, alike)))


def test_without_the_mean_all_would_be_alike() -> None:
    generator = torch.Generator().manual_seed(4)
    embeddings = torch.randn(50, 32, generator=generator) + 30
    cosines = torch.nn.functional.normalize(embeddings, dim=-1)
    assert (cosines @ cosines.T).min() > 0.99
    assert len(set(near_copies(embeddings, 0.95))) == 50
    twice = torch.cat([embeddings, embeddings])  # a cosine of 1 is that of copies alone
    assert near_copies(twice, 1.0).tolist() == [*range(50), *range(50)]


def test_images_that_are_all_the_same_are_one_group() -> None:
    """Less their mean nothing is left of them, and rounding may point anywhere."""
    assert len(set(near_copies(torch.ones(5, 8), 0.95))) == 1
