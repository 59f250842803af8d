"""Explanations -> tables, lines for people, and dicts for JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ..analysis import (
    AdapterExplanation,
    HeadExplanation,
    HeadImageExplanation,
    ImageExplanation,
    Reason,
)
from ..analysis.describing import Words
from ..errors import counted
from ..hub.files import plain_of
from ..towers.units import Unit

SIDE = 5  # of an image's margin: so many components for it, and against it
CLASSES = 20  # that lines speak of; the dict has all
Texts = Mapping[tuple[Unit, int | None], tuple[tuple[str, float], ...]]
ForAndAgainst = tuple[str, Sequence[Reason], Sequence[Reason]]
"""A class, and what speaks for it and against it."""


@dataclass(frozen=True)
class Shown:
    """A component named beside an image."""

    unit: Unit  # whose
    component: int | None  # its number; None for the unit
    effect: float  # on the margin
    side: int  # 1 where the image lies along it, seen from the mean image of the fit, else −1
    place: int = 0  # of it, or of its unit's first component, among all K


def named(unit: Unit, component: int | None) -> str:
    """A component in a table."""
    return f"{unit}" if component is None else f"{unit} {component}"


def texts_of(words: Iterable[Words]) -> Texts:
    """Words by what they are of."""
    return {(item.unit, item.component): item.texts for item in words}


def with_signs(texts: Iterable[tuple[str, float]], side: int = 1) -> str:
    """Texts behind their signs, as they are for one that lies on a side of a component.

    >>> with_signs((("a curve", 0.5), ("a line", -0.2)), -1)
    '− a curve, + a line'
    """
    return ", ".join(f"{'+' if value * side >= 0 else '−'} {text}" for text, value in texts)


def cells(effects: Iterable[Any], texts: Texts) -> list[list[str]]:
    """Component, gain where it has one, share, toward the label, words."""
    found = []
    for effect in effects:
        gain = [f"{effect.gain:.2f}"] if hasattr(effect, "gain") else []
        numbers = [f"{effect.share:.1%}", f"{effect.toward_label:+.3f}"]
        words = with_signs(texts.get((effect.unit, effect.component), ()))
        found.append([named(effect.unit, effect.component), *gain, *numbers, words])
    return found


def component_dicts(effects: Iterable[Any], texts: Texts) -> list[dict[str, Any]]:
    """JSON-able: components with their words."""
    found = []
    for effect in effects:
        said = texts.get((effect.unit, effect.component), ())
        words = [{"text": text, "coefficient": value} for text, value in said]
        found.append(plain_of(effect) | {"words": words})
    return found


def class_dicts(classes: Iterable[ForAndAgainst]) -> list[dict[str, Any]]:
    """JSON-able: what speaks for and against each class."""
    return [
        {"class": name, "for": plain_of(pro), "against": plain_of(con)}
        for name, pro, con in classes
    ]


def explanation_dict(
    explanation: AdapterExplanation | HeadExplanation, effects: Iterable[Any], texts: Texts
) -> dict[str, Any]:
    """JSON-able: units, components with their words; of a head its classes, too."""
    whole: dict[str, Any] = {"images": explanation.images}
    if isinstance(explanation, AdapterExplanation):
        whole |= {
            "logit_change": explanation.change,
            "rescaling_share": explanation.rescaling_share,
            "settings_share": explanation.settings_share,
        }
    else:
        names = explanation.class_names
        classes = [(name, *explanation.reasons(k)) for k, name in enumerate(names)]
        whole |= {
            "logit_spread": explanation.spread,
            "text_share": explanation.text_share,
            "classes": class_dicts(classes),
        }
    units = [plain_of(item) for item in explanation.by_unit()]
    return whole | {"units": units, "components": component_dicts(effects, texts)}


def lines_of(explanation: AdapterExplanation | HeadExplanation, texts: Texts) -> list[str]:
    """What the shares are of; of a head, what speaks for and against each class."""
    together = float(explanation.share.sum())
    if isinstance(explanation, AdapterExplanation):
        return [
            f"Shares of the squared change of the logits of {explanation.images} images; all "
            f"components {together:.1%}, rescaling {explanation.rescaling_share:.1%}, settings "
            f"{explanation.settings_share:.1%}."
        ]
    classes = [(name, *explanation.reasons(k)) for k, name in enumerate(explanation.class_names)]
    return [
        f"Shares of how the class head's logits vary over {explanation.images} images; all "
        f"components {together:.1%}, texts {explanation.text_share:.1%}.",
        *class_lines(classes, texts),
    ]


def class_lines(classes: Sequence[ForAndAgainst], texts: Texts) -> list[str]:
    """What speaks for and against each class in its own images, in logits."""
    lines = []
    for name, pro, con in classes[:CLASSES]:
        lines.append(f"{name}:")
        for title, reasons in (("for", pro), ("against", con)):
            lines += [f"  {title} {_reason(reason, texts)}" for reason in reasons]
    more = len(classes) - CLASSES
    return lines + ([f"... and {more} more"] if more > 0 else [])


def _reason(reason: Reason | Shown, texts: Texts) -> str:
    words = with_signs(texts.get((reason.unit, reason.component), ())[:2], reason.side)
    where = named(reason.unit, reason.component)
    return f"{where}: {reason.effect:+.2f}" + (f"  ({words})" if words else "")


def image_dict(item: ImageExplanation | HeadImageExplanation, count: int = 10) -> dict[str, Any]:
    """JSON-able: classes, margins and the strongest components."""
    if isinstance(item, HeadImageExplanation):
        return {
            "class": item.this_class,
            "rather_than": item.other_class,
            "margin": item.margin,
            "texts": item.text,
            "constant": item.constant,
            "units": [{"unit": str(unit), "effect": effect} for unit, effect in item.by_unit()],
            "components": [
                {"unit": str(unit), "component": number, "effect": effect}
                for unit, number, effect in item.strongest(count)
            ],
        }
    return {
        "from": item.from_class,
        "to": item.to_class,
        "margin_before": item.margin_before,
        "margin_after": item.margin_after,
        "rescaling": item.rescaling,
        "components": [
            {"unit": str(unit), "component": number, "gain": gain, "effect": effect}
            for unit, number, gain, effect in item.strongest(count)
        ],
    }


def shown(item: ImageExplanation | HeadImageExplanation) -> list[Shown]:
    """The components that are named beside an image: for its class, then against it."""
    firsts = dict(zip(item.units, accumulate(item.counts, initial=0), strict=False))
    seen = item.centred if isinstance(item, HeadImageExplanation) else item.coordinates
    found = []
    for unit, number, *_, effect in _both_sides(item.strongest(len(item.effects))):
        place = firsts[unit] + (number or 0)
        side = 1 if number is None or float(seen[place]) >= 0 else -1
        found.append(Shown(unit, number, effect, side, place))
    return found


def _both_sides(components: list[Any]) -> list[Any]:
    """Of components with their effect last, the strongest for, then those against."""
    pro, con = ([one for one in components if sign * one[-1] > 0] for sign in (1, -1))
    return pro[:SIDE] + con[:SIDE]


def image_lines(
    path: str, item: ImageExplanation | HeadImageExplanation, texts: Texts
) -> list[str]:
    """What moved an image, or made a head say its class; the numbers add up."""
    if isinstance(item, HeadImageExplanation):
        return _decided(path, item, texts)
    said = (
        f"{item.from_class} -> {item.to_class}"
        if item.margin_after > 0
        else f"stays {item.from_class}, next {item.to_class}"
    )
    first = (
        f"{path}: {said}, margin of {item.to_class} {item.margin_before:+.2f} -> "
        f"{item.margin_after:+.2f}"
    )
    return [first, *_moves(item)]


def _decided(path: str, item: HeadImageExplanation, texts: Texts) -> list[str]:
    named_ones = shown(item)
    total = len(item.units) if item.per_unit else len(item.effects)
    rest = float(item.effects.sum()) - sum(one.effect for one in named_ones)
    parts = [f"{counted(total - len(named_ones), 'other')}: {rest:+.2f}"]
    if item.text:
        parts.append(f"texts: {item.text:+.2f}")
    parts.append(f"whatever the image: {item.constant:+.2f}")
    return [
        f"{path}: {item.this_class} rather than {item.other_class}, margin {item.margin:+.2f}",
        *(f"  {_reason(one, texts)}" for one in named_ones),
        f"  {'; '.join(parts)}; together {item.margin:+.2f}",
    ]


def _moves(moved: ImageExplanation) -> list[str]:
    """The strongest for and against the change of an image's margin, and the sum of it all."""
    found = moved.strongest(len(moved.effects))
    most = _both_sides(found)
    lines = [
        f"  {named(unit, number)}: gain {gain:.2f}, margin {effect:+.2f}"
        for unit, number, gain, effect in most
    ]
    together = moved.margin_after - moved.margin_before
    others = together - moved.rescaling - moved.settings - sum(item[3] for item in most)
    parts = [f"{counted(len(found) - len(most), 'other')}: {others:+.2f}"]
    parts.append(f"the embedding's changed length: {moved.rescaling:+.2f}")
    if moved.settings:
        parts.append(f"what the adapter's settings drop: {moved.settings:+.2f}")
    return [*lines, f"  {'; '.join(parts)}; together {together:+.2f}"]
