"""From names to what a saved adapter changed: its gains or its class head, on data or one image."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..analysis import (
    AdapterExplanation,
    HeadExplanation,
    HeadImageExplanation,
    ImageExplanation,
    TextDictionary,
    explain_adapter,
    explain_head,
    explain_head_image,
    explain_image,
    explained_head,
)
from ..analysis.describing import Described, Words, dictionary_if_any, words_for
from ..classifiers.backbones import backbone_of, has_text
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import batches
from ..data.labels import ONE_LABEL, check_same
from ..errors import ResiDualError, counted
from ..reporting.components import head_components, strongest
from ..reporting.run_record import RunRecord
from ..solvers.coordinates import collect_coordinates
from . import telling
from .fitting import Measuring, choose_images
from .studies import FOR_ONE

_WHOLE = (
    "The class head reads the embedding as a whole, so what it says does not divide among heads "
    "and MLPs; fit one on the coordinates (--method ridge) to see where it looks."
)
GAIN_HEADERS = ("component", "gain", "share", "toward label", "words")
HEAD_HEADERS = ("component", "share", "toward label", "words")


@dataclass(frozen=True)
class AdapterStudy:
    """What a saved adapter changed."""

    # of the logits of a split's images, by gains or by a class head; None where single images alone
    # are explained
    explanation: AdapterExplanation | HeadExplanation | None
    strongest: tuple[Any, ...] = ()  # the components with the largest shares
    # texts for each of those; empty without a text tower or components
    words: tuple[Words, ...] = ()
    # path -> which components moved it, or made the class head say what it says
    images: dict[str, ImageExplanation | HeadImageExplanation] = field(default_factory=dict)
    # of the components that `lines` names beside classes and images
    more_words: tuple[Words, ...] = ()
    # which images those of the split are: `Chosen.as_dict`
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def headers(self) -> tuple[str, ...]:
        """Of the columns of `cells`."""
        return HEAD_HEADERS if isinstance(self.explanation, HeadExplanation) else GAIN_HEADERS

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: units, strongest components with their words, classes, and images."""
        whole, texts = {}, telling.texts_of(self.words)
        if self.explanation is not None:
            whole = telling.explanation_dict(self.explanation, self.strongest, texts)
        moved = {path: telling.image_dict(item) for path, item in self.images.items()}
        return {**self.chosen, **whole, "moved": moved}

    def cells(self) -> list[list[str]]:
        """For a table: component, gain (of gains alone), share, toward the label, words."""
        return telling.cells(self.strongest, telling.texts_of(self.words))

    def lines(self) -> list[str]:
        """For people: what the shares are of, and what moved each of the single images."""
        texts = telling.texts_of(self.more_words)
        lines = [] if self.explanation is None else telling.lines_of(self.explanation, texts)
        for path, item in self.images.items():
            lines += telling.image_lines(path, item, texts)
        return lines


@dataclass(frozen=True)
class RecordedStudy:
    """What the record of a fit says of it: no model is loaded and no image is read."""

    record: RunRecord  # of the fit
    count: int = 12  # components to list

    @property
    def headers(self) -> tuple[str, ...]:
        """Of the columns of `cells`."""
        return GAIN_HEADERS if self.record.gains is not None else HEAD_HEADERS

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: the strongest components with their words, and classes."""
        effects = telling.component_dicts(self._effects, self._texts)
        classes = telling.class_dicts(self._classes)
        return {"images": len(self.record.labels), "components": effects, "classes": classes}

    def cells(self) -> list[list[str]]:
        """As `AdapterStudy.cells`."""
        return telling.cells(self._effects, self._texts)

    def lines(self) -> list[str]:
        """For people: what the shares are of."""
        gains, head = self.record.gains, self.record.head
        images = f"{counted(len(self.record.labels), 'test image')} of the fit"
        if gains is not None:
            return [
                f"Shares of the squared change of the logits of the {images}; rescaling "
                f"{gains.rescaling_share:.1%}, settings {gains.settings_share:.1%}."
            ]
        if head is None or not head.units:
            return [_WHOLE if head is not None else "The record says nothing of single units."]
        first = (
            f"Shares of how the class head's logits vary over the {images}; texts "
            f"{head.text_share:.1%}."
        )
        texts = telling.texts_of(self.record.words)
        return [first, *telling.class_lines(self._classes, texts)]

    @property
    def _effects(self) -> list[Any]:
        if self.record.gains is not None:
            return [*strongest(self.record, self.count)]
        return [] if self.record.head is None else [*head_components(self.record, self.count)]

    @property
    def _texts(self) -> telling.Texts:
        return {(e.unit, e.component): e.words.texts for e in self._effects if e.words}

    @property
    def _classes(self) -> list[telling.ForAndAgainst]:
        reasons = () if self.record.head is None else self.record.head.reasons
        return [(self.record.class_names[x.class_index], x.pro, x.con) for x in reasons]


def study_adapter(
    adapter: str | os.PathLike[str],
    data: Any = None,
    *,
    images: Iterable[str | os.PathLike[str]] = (),
    words: str | os.PathLike[str] | Iterable[str] | None = None,
    count: int = 12,
    progress: bool = False,
    **options: Any,
) -> AdapterStudy | RecordedStudy:
    """Say which components of a saved adapter, in readout mode, did what, and their words.

    Of an adapter with a class head on coordinates, what the head says of some images; of another,
    what its gains changed. Without data (what `load_data` takes, with some or all of the adapter's
    classes), single images alone; without these either, what the fit left in `run` beside the
    adapter says of its test images. Words are as for `dictionary_for`; options are those of
    `Measuring`.

    Raises:
        ResiDualError: bad data, a class that the adapter does not know, an adapter that is not
            there or is in stream mode, a class head on the embedding, or no data, images or record.
    """
    paths = [str(path) for path in images]
    if data is None and not paths:
        return RecordedStudy(_record_of(adapter), count)
    asked = Measuring(**options)
    classifier = ZeroShotClassifier.from_pretrained(adapter, device=asked.device)
    check_same(ONE_LABEL, classifier.labelling, FOR_ONE)
    if classifier.head is not None:
        explained_head(classifier)  # says before any work what is amiss
    dictionary = dictionary_of(classifier, words)
    found: AdapterExplanation | HeadExplanation | None = None
    chosen: dict[str, Any] = {}
    if data is not None:
        picked = choose_images(classifier, data, **options)
        loader = batches(picked.images, **asked.reading)
        rows = collect_coordinates(classifier.model, loader, progress=progress)
        chosen = picked.without(loader.skipped, asked.max_bad).as_dict()
        explain = explain_adapter if classifier.head is None else explain_head
        found = explain(classifier, rows)
    most: tuple[Any, ...] = () if found is None else tuple(found.strongest(count))
    said = () if dictionary is None else words_for(classifier.model, most, dictionary)
    explain_one = explain_image if classifier.head is None else explain_head_image
    single = {path: explain_one(classifier, path) for path in paths}
    return AdapterStudy(
        explanation=found,
        strongest=most,
        words=said,
        images=single,
        more_words=_more_words(classifier, found, single.values(), dictionary),
        chosen=chosen,
    )


def _record_of(adapter: str | os.PathLike[str]) -> RunRecord:
    if not Path(adapter).is_dir():
        raise ResiDualError(
            f"wanted --data or images to explain '{adapter}' with: what a fit leaves of itself "
            "lies beside the adapter on the machine that it was fitted on, and is never pushed."
        )
    try:
        return RunRecord.load(adapter)
    except ResiDualError as error:
        raise ResiDualError(
            f"{error} Without one, explain wants --data or images to look at."
        ) from error


def dictionary_of(classifier: ZeroShotClassifier, words: Any = None) -> TextDictionary | None:
    """The texts that an adapter's components are described with; None without a text tower."""
    base = classifier.model.get_base_model()
    if not has_text(base) or not classifier.templates:
        return None
    return dictionary_if_any(backbone_of(base), words)


def _more_words(
    classifier: ZeroShotClassifier,
    explanation: AdapterExplanation | HeadExplanation | None,
    images: Iterable[ImageExplanation | HeadImageExplanation],
    dictionary: TextDictionary | None,
) -> tuple[Words, ...]:
    """Of the components that are named beside a class head's classes and images."""
    effects: list[Described] = []
    if isinstance(explanation, HeadExplanation):
        for index in range(min(len(explanation.class_names), telling.CLASSES)):
            effects += [reason for side in explanation.reasons(index) for reason in side]
    for item in images:
        effects += telling.shown(item) if isinstance(item, HeadImageExplanation) else []
    if dictionary is None or not effects:
        return ()
    return words_for(classifier.model, effects, dictionary, steps=2)
