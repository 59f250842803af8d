"""One image through a classifier, what moved it, and what it would be with other gains.

Nothing here knows of a browser: `page` shows what this says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...analysis import (
    HeadImageExplanation,
    ImageExplanation,
    explain_head_row,
    explain_row,
    explained_head,
)
from ...analysis.describing import words_for
from ...analysis.movement import coordinates_of_image
from ...bases.reading import reading
from ...classifiers.outputs import pixel_batches
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data.images import ImageLike
from ...errors import ResiDualError
from ...solvers.coordinates import Coordinates
from ...towers.units import Unit
from ...tuner import gains_of, readout_state
from .. import telling
from ..explaining import dictionary_of

KNOBS = 6
"""Components that may be turned: the strongest for the image."""
WORDS = 3  # texts per component


@dataclass(frozen=True, eq=False)
class Scores:
    """What is said of an image, by class."""

    probabilities: dict[str, float]
    logits: dict[str, float]

    def margin(self, this: str, other: str) -> float:
        """By how much the logit of one class is above that of another."""
        return self.logits[this] - self.logits[other]


@dataclass(frozen=True)
class Knob:
    """A component that may be turned."""

    unit: Unit  # whose
    component: int | None  # its number; None for the whole unit
    fitted: float  # where it stands: its gain, or 1 where a class head reads the component
    effect: float  # on the margin, as it stands
    words: str  # what the image has of it; empty without a text tower

    @property
    def name(self) -> str:
        """As tables have it."""
        return telling.named(self.unit, self.component)

    @property
    def range(self) -> tuple[float, float]:
        """From where to where it may be turned; 0 takes the component away."""
        return min(-2.0, math.floor(2 * self.fitted)), max(4.0, math.ceil(2 * self.fitted))


@dataclass(frozen=True, eq=False)
class Look:
    """What there is to say of one image."""

    before: Scores  # by the backbone without the adapter
    after: Scores  # by the classifier
    # what moved it, or made the class head say what it says; None where `Looking.silence` says why
    why: ImageExplanation | HeadImageExplanation | None = None
    rows: Coordinates | None = None  # the image's coordinates, likewise
    knobs: tuple[Knob, ...] = ()  # the strongest components for and against

    @property
    def classes(self) -> tuple[str, str] | None:
        """That the margin is between: the class it is, and the one it rather is not."""
        if self.why is None:
            return None
        if isinstance(self.why, HeadImageExplanation):
            return self.why.this_class, self.why.other_class
        return self.why.to_class, self.why.from_class

    def by_unit(self) -> list[tuple[Unit, float]]:
        """The effect of every unit on the margin, the largest first."""
        if self.why is None:
            return []
        sums = [float(part.sum()) for part in self.why.effects.split(list(self.why.counts))]
        return sorted(zip(self.why.units, sums, strict=True), key=lambda item: -abs(item[1]))


class Looking:
    """A classifier that is asked about one image at a time.

    Attributes:
        classifier: as it is; it is never changed.
        silence: why single components are not told; empty where they are.
    """

    def __init__(self, classifier: ZeroShotClassifier) -> None:
        self.classifier = classifier
        self.silence = _silence(classifier)
        self.dictionary = None if self.silence else dictionary_of(classifier)
        self._words: dict[tuple[Unit, int | None], tuple[tuple[str, float], ...]] = {}

    def look(self, image: ImageLike) -> Look:
        """All of it for one image.

        Raises:
            ResiDualError: it cannot be read.
        """
        if self.silence:
            batch = next(pixel_batches([image], self.classifier.image_processor, 1))
            ((_, logits),) = self.classifier.classified([batch])
            (seen,) = reading(self.classifier.model, None, [batch])
            plain = self._scores(self.classifier.logits(seen.readout))
            return Look(plain, self._scores(logits))
        rows = coordinates_of_image(self.classifier, image).to("cpu")
        before, after = self._scores(self.classifier.logits(rows.readout)), self.turned(rows, ())
        why: ImageExplanation | HeadImageExplanation
        if self.classifier.head is not None:
            why = explain_head_row(self.classifier, rows, 0)
        else:  # why it is what it is, rather than what it was, or than the next one
            this, second, *_ = sorted(after.logits, key=lambda name: -after.logits[name])
            was = max(before.logits, key=lambda name: before.logits[name])
            other = second if was == this else was
            why = explain_row(self.classifier, rows, 0, from_class=other, to_class=this)
        knobs = sorted(self._shown(why), key=lambda knob: -abs(knob.effect))
        return Look(before, after, why, rows, tuple(knobs[:KNOBS]))

    def turned(self, rows: Coordinates, values: Sequence[tuple[Knob, float]]) -> Scores:
        """What is said with some knobs at other values; others stand as fitted.

        A gain scales what its component writes to the embedding. Where a class head reads the
        component, it is how far the image is from the mean image along it that is scaled.
        """
        gains = gains_of(self.classifier.model).detach().cpu().clone()
        features = rows.coordinates.clone()
        head = self.classifier.head
        for knob, value in values:
            where = self._place(rows, knob)
            if head is None:
                settings = rows.state.settings
                which = settings.units.index(knob.unit) if settings.per_unit else where.start
                gains[which] = value
            else:
                mean = head.head.mean.to(features)[where]
                features[:, where] = mean + value * (features[:, where] - mean)
        return self._scores(self.classifier.answer(rows.adapted(gains), rows.readout, features))

    def words(self, unit: Unit, component: int | None) -> tuple[tuple[str, float], ...]:
        """The texts of a component with their coefficients; none without a dictionary."""
        key = (unit, component)
        if self.dictionary is None or component is None:
            return ()
        if key not in self._words:
            asked = telling.Shown(unit, component, 0.0, 1)
            found = words_for(self.classifier.model, [asked], self.dictionary, steps=WORDS)
            self._words[key] = found[0].texts if found else ()
        return self._words[key]

    def effects(self, why: ImageExplanation | HeadImageExplanation) -> list[tuple[str, float, str]]:
        """Component, effect on the margin and words: the strongest for it, then those against."""
        return [(k.name, k.effect, k.words) for k in self._shown(why)]

    def _shown(self, why: ImageExplanation | HeadImageExplanation) -> list[Knob]:
        return [
            Knob(
                item.unit,
                item.component,
                1.0 if isinstance(why, HeadImageExplanation) else float(why.gains[item.place]),
                item.effect,
                telling.with_signs(self.words(item.unit, item.component), item.side),
            )
            for item in telling.shown(why)
        ]

    def _place(self, rows: Coordinates, knob: Knob) -> slice:
        """Where a knob's components are among all K."""
        settings = rows.state.settings
        index = settings.units.index(knob.unit)
        start, count = sum(rows.state.counts[:index]), rows.state.counts[index]
        if knob.component is None:
            return slice(start, start + count)
        return slice(start + knob.component, start + knob.component + 1)

    def _scores(self, logits: Tensor) -> Scores:
        names, found = self.classifier.class_names, self.classifier.labelling.probabilities(logits)
        return Scores(
            dict(zip(names, found[0].tolist(), strict=True)),
            dict(zip(names, logits[0].tolist(), strict=True)),
        )


def _silence(classifier: ZeroShotClassifier) -> str:
    """Why single components of a classifier's answer cannot be told; empty where they can."""
    if words := classifier.labelling.unmoved_words:
        return words
    try:
        state = readout_state(classifier.model)
        if classifier.head is not None:
            explained_head(classifier)
        elif not state.gains.scales:
            return "The adapter's gains scale no coordinates: what each did is not told."
    except ResiDualError as error:
        return f"Single components are not told: {error}"
    return ""
