"""A fitted adapter and its scores on the test images -> the record for its report."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from ..analysis import (
    AdapterExplanation,
    HeadExplanation,
    TextDictionary,
    explain_adapter,
    explain_head,
)
from ..analysis.describing import Described, Words, words_for
from ..classifiers.adapters import ADAPTER_TENSORS
from ..classifiers.cards import adapter_facts
from ..classifiers.evaluation import Evaluation
from ..classifiers.files import CLASSIFIER_TENSORS
from ..classifiers.heads.head import by_unit
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.checking import undecoded
from ..data.images import to_rgb
from ..data.labels import labelling_in
from ..data.pictures import thumbnail
from ..hub.facts import Facts
from ..hub.files import PathLike
from ..hub.machine import processor, versions
from ..reporting.run_record import (
    ClassReasons,
    Example,
    GainRecord,
    HeadShares,
    RunRecord,
    TrustRecord,
)
from ..solvers.coordinates import Coordinates
from ..solvers.store import CoordinateStore
from .listing import Noted, mistakes_of, pictured

EXAMPLES_PER_SIDE = 12
DESCRIBED, MOST_DESCRIBED = 12, 240
"""The strongest components, and of those that speak for or against a class, that get words."""
_PACKAGES = ("residual-peft", "peft", "transformers", "torch")


def record_run(
    classifier: ZeroShotClassifier,
    test: Dataset,
    before: Evaluation,
    after: Evaluation,
    facts: Facts,
    rows: Coordinates | CoordinateStore | None = None,
    dictionary: TextDictionary | None = None,
    trust: TrustRecord | None = None,
    suspicious: Sequence[Noted] = (),
    mistakes: Sequence[Noted] | None = None,
) -> RunRecord:
    """Gather what a report shows; of the images, only those that changed side are decoded.

    The test split has the order of the evaluations, without the adapter and with it. In stream mode
    there are no coordinates of the test images, and without a dictionary no words. Mistakes are
    `mistakes_of` the test split, where they are known.

    Raises:
        ResiDualError: an image cannot be read, or the parts do not belong together.
    """
    changed = changed_rows(before.logits, after.logits, after.labels)
    mistakes = mistakes_of(after, test) if mistakes is None else mistakes
    pictures = undecoded(test)
    examples = [
        Example(row, thumbnail(to_rgb(pictures[row]["image"], f"image {row} of the test split")))
        for row in changed or ()
    ]
    # shares are of what speaks for an image's own class
    gains, head, described = _inside(classifier, None if changed is None else rows)
    words: tuple[Words, ...] = ()
    if dictionary is not None and described:
        words = words_for(classifier.model, described, dictionary)
    return RunRecord(
        class_names=classifier.class_names,
        labels=after.labels.cpu(),
        before=before.logits.float().cpu(),
        after=after.decided.float().cpu().clone(),  # texts alone may have been chosen
        facts=facts,
        gains=gains,
        words=words,
        examples=tuple(examples),
        head=head,
        trust=trust,
        mistakes=() if mistakes is None else pictured(mistakes),
        suspicious=pictured(suspicious),
    )


def _inside(
    classifier: ZeroShotClassifier, rows: Coordinates | CoordinateStore | None
) -> tuple[GainRecord | None, HeadShares | None, list[Described]]:
    """What gains did or a class head says, and the components to find words for."""
    trained = classifier.head
    if rows is None:
        return None, None, []
    if trained is None and not rows.state.gains.scales:  # of another kind, nothing is told
        return None, None, []
    if trained is None:
        explained = explain_adapter(classifier, rows)
        return _gains(explained), None, [*explained.strongest(DESCRIBED)]
    inside = (rows.labels < trained.class_count).sum()
    if trained.features == "embedding" or inside < 2:
        nothing = torch.zeros(0)
        return None, HeadShares(trained.features, (), (), nothing, nothing), []
    found = explain_head(classifier, rows)
    head = _shares(found)
    reasons = [r for item in head.reasons for r in (*item.pro, *item.con)]
    # the strongest of each class first, then the others, as far as there is room
    reasons.sort(key=lambda reason: -abs(reason.effect))
    return None, head, [*found.strongest(DESCRIBED), *reasons[:MOST_DESCRIBED]]


def _shares(explanation: HeadExplanation) -> HeadShares:
    share, toward, counts = explanation.share, explanation.toward_label, explanation.counts
    if explanation.per_unit:
        share, toward = (by_unit(part, counts).double() for part in (share, toward))
        counts = (1,) * len(counts)
    sides = [(k, *explanation.reasons(k)) for k in range(len(explanation.class_names))]
    return HeadShares(
        "coordinates",
        explanation.units,
        counts,
        share,
        toward,
        explanation.text_share,
        explanation.per_unit,
        tuple(ClassReasons(k, tuple(pro), tuple(con)) for k, pro, con in sides if pro or con),
    )


def changed_rows(
    before: Tensor, after: Tensor, labels: Tensor, limit: int = EXAMPLES_PER_SIDE
) -> list[int] | None:
    """Images that became right and images that became wrong, at most `limit` of each.

    Those whose label's probability changed most come first; equal ones in their order. Logits are
    (N, C). None where no image is right or wrong, with several labels each.
    """
    if labelling_in(labels).surprise(after, labels) is None:
        return None
    was, now = before.argmax(1) == labels, after.argmax(1) == labels
    own = labels[:, None]
    change = after.double().softmax(1).gather(1, own) - before.double().softmax(1).gather(1, own)
    order = change[:, 0].abs().argsort(descending=True, stable=True)
    sides = [order[(now & ~was)[order]], order[(was & ~now)[order]]]
    return [int(row) for side in sides for row in side[:limit]]


def run_facts(
    classifier: ZeroShotClassifier, directory: PathLike | None, facts: Facts, location: str
) -> Facts:
    """Facts of a fit, and beside them what the adapter, its directory and this machine know.

    The directory is None where it was not saved; `location` is what loads it.
    """
    device = classifier.device
    parts = [Path(directory or "") / name for name in (ADAPTER_TENSORS, CLASSIFIER_TENSORS)]
    return replace(
        adapter_facts(classifier.model, classifier, classifier.head, facts, location),
        adapter_bytes=None if directory is None else sum(part.stat().st_size for part in parts),
        # as its maker calls it
        machine=torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        cores=os.cpu_count(),
        versions=versions(_PACKAGES),
        date=datetime.now(timezone.utc).date().isoformat(),
    )


def _gains(explained: AdapterExplanation) -> GainRecord:
    counts, gains, eigenvalues = explained.counts, explained.gains, explained.eigenvalues
    share, toward = explained.share, explained.toward_label
    if explained.per_unit:
        gains = gains[torch.tensor([0, *counts[:-1]]).cumsum(0)]  # the first of each unit
        share, toward = (by_unit(part, counts).float() for part in (share, toward))
        counts, eigenvalues = (1,) * len(counts), None
    return GainRecord(
        explained.units,
        counts,
        gains,
        share,
        toward,
        explained.rescaling_share,
        explained.settings_share,
        eigenvalues,
    )
