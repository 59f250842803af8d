"""Words for what an adapter changed: a text dictionary for a backbone, texts for its components."""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ..classifiers.backbones import Backbone
from ..errors import ResiDualError
from ..hub.directories import model_directory
from ..hub.files import Count
from ..towers.units import Unit
from ..tuner import adapter_basis, readout_state
from . import TextDictionary, explain_components

WORDS_FILE = "words.txt"


class Described(Protocol):
    """Something that is said of one component, or of a unit as a whole."""

    @property
    def unit(self) -> Unit:
        """Whose component."""

    @property
    def component(self) -> int | None:
        """Its number within the unit; None for the unit."""


@dataclass(frozen=True)
class Words:
    """Texts that say what one component, or a whole unit, writes.

    Attributes:
        unit: whose.
        component: its number within the unit; None for the unit as a whole.
        texts: the texts with their coefficients, the strongest first.
        explained: the share that they explain of a unit's variance, or of the squared length of a
            component's direction; None when unknown.
    """

    unit: Unit
    component: Count | None
    texts: tuple[tuple[str, float], ...]
    explained: float | None = None


def dictionary_for(
    backbone: Backbone, texts: str | os.PathLike[str] | Iterable[str] | None = None
) -> TextDictionary:
    """The texts that a backbone's units are described with, embedded by its own text tower.

    A file with one text a line, or the texts; None for the model's own `words.txt` where its
    directory has one (the bundled model does: it knows no others), else for the bundled list of
    general descriptions.

    Raises:
        ResiDualError: a file that cannot be read, or fewer than two texts.
    """
    model, tokenizer = backbone.model, backbone.tokenizer
    if tokenizer is None:
        raise ResiDualError(
            f"{type(model).__name__} has no text tower to embed words with; leave them out."
        )
    if isinstance(texts, str | os.PathLike):
        return TextDictionary.from_file(texts, model, tokenizer)
    if texts is not None:
        return TextDictionary.from_texts(model, tokenizer, texts)
    own = model_directory(backbone.name) / WORDS_FILE
    if own.is_file():
        return TextDictionary.from_file(own, model, tokenizer)
    return TextDictionary.general(model, tokenizer)


def dictionary_if_any(
    backbone: Backbone, texts: str | os.PathLike[str] | Iterable[str] | None = None
) -> TextDictionary | None:
    """`dictionary_for`; None for an empty list, and where the model cannot read the bundled one.

    Raises:
        ResiDualError: texts that were asked for and cannot be had.
    """
    if texts is not None and not isinstance(texts, str | os.PathLike):
        texts = list(texts)
        return dictionary_for(backbone, texts) if texts else None
    try:
        return dictionary_for(backbone, texts)
    except ResiDualError as error:
        if texts is not None:
            raise
        # a text tower of an unusual kind, such as one for short texts
        warnings.warn(f"there will be no words: {error}", stacklevel=3)
        return None


def words_for(
    model: nn.Module, effects: Sequence[Described], dictionary: TextDictionary, *, steps: int = 3
) -> tuple[Words, ...]:
    """Texts that an adapter's components are made of, `steps` each at most, by OMP.

    Each component once, in the order given; of whole units, which keep no directions, none.

    Raises:
        ResiDualError: the adapter's basis has no such component.
    """
    if readout_state(model).settings.per_unit:
        return ()
    basis, steps = adapter_basis(model), min(steps, len(dictionary))
    named = dict.fromkeys((effect.unit, effect.component) for effect in effects)
    found = [
        explain_components(basis, dictionary, [unit], [component], steps)[0]
        for unit, component in named
        if component is not None
    ]
    return tuple(
        Words(
            unit=item.unit,
            component=item.component,
            texts=tuple(zip(item.texts, item.coefficients or (), strict=True)),
            explained=item.explained[-1] if item.explained else None,
        )
        for item in found
    )
