"""The bundled model's world: what its images show, its tasks and their words.

An image shows one object, or two or three equal ones: a shape, a printed digit or a printed letter.
Every attribute below is drawn at random and named by captions. There is no handwriting in it.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ResiDualError

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": (
        "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black",
    ),
    "background": ("black", "white", "gray", "noisy", "gradient", "gridded"),
    "position": ("left", "right", "top", "bottom", "center"),
    "size": ("small", "large"),
    "texture": ("plain", "striped", "dotted", "checkered"),
    "shape": (
        "circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent", "arrow",
        "diamond",
    ),
    "digit": tuple("0123456789"),
    "letter": tuple("ABCDEFGHJKLMNPQRSTUVWXYZ"),  # I and O would be 1 and 0
    "count": ("one", "two", "three"),
}  # fmt: skip
"""Attribute -> its values; an attribute's task has these as class names."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": ("a {} object", "something {}", "an image of something {}"),
    "background": ("a {} background", "an object on a {} background", "something on {}"),
    "position": ("an object at the {}", "something at the {} of the image", "placed at the {}"),
    "size": ("a {} object", "something {}", "an image of something {}"),
    "texture": ("a {} shape", "a shape with a {} texture", "an image of something {}"),
    "shape": ("a {}", "an image of a {}", "the shape of a {}"),
    "digit": ("the digit {}", "an image of the number {}", 'a photo of the number: "{}".'),
    "letter": ("the letter {}", "an image of the letter {}", 'a photo of the letter: "{}".'),
    "count": ("{} objects", "an image of {} objects", "{} in total"),
}
"""Attribute -> prompt templates of its task; captions use the same words."""

COLORS = torch.tensor(
    [
        [0.85, 0.10, 0.10],
        [0.95, 0.50, 0.05],
        [0.92, 0.85, 0.10],
        [0.10, 0.60, 0.15],
        [0.10, 0.80, 0.85],
        [0.12, 0.20, 0.85],
        [0.50, 0.12, 0.65],
        [0.98, 0.50, 0.72],
        [0.97, 0.97, 0.97],
        [0.04, 0.04, 0.04],
    ]
)
"""RGB of each colour, in the order of ATTRIBUTES["color"]."""

# a white object on white and a black one on black cannot be seen
_UNSEEN = ((8, 1), (9, 0))


@dataclass(frozen=True)
class Scene:
    """What B images show: attribute -> (B,) values as indices, -1 where it does not apply."""

    values: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.values["color"])

    def __getitem__(self, index: Tensor | slice) -> "Scene":
        return Scene({name: value[index] for name, value in self.values.items()})


def sample_scenes(size: int, generator: torch.Generator, *, only: str | None = None) -> Scene:
    """Draw what `size` images show; an attribute may have to apply to all (for its task).

    Raises:
        ResiDualError: `only` is no attribute.
    """
    if only is not None and only not in ATTRIBUTES:
        raise ResiDualError(f"wanted one of the attributes {', '.join(ATTRIBUTES)}; got '{only}'.")
    values = {
        name: torch.randint(len(known), (size,), generator=generator)
        for name, known in ATTRIBUTES.items()
    }
    kind = torch.rand(size, generator=generator)  # 45 % shapes, 33 % digits, 22 % letters
    if only in ("shape", "texture"):
        kind = kind * 0.45
    elif only == "digit":
        kind = 0.45 + kind * 0.33
    elif only == "letter":
        kind = 0.78 + kind * 0.22
    several = torch.rand(size, generator=generator) < 0.2
    if only == "count":
        several = values["count"] > 0
    elif only in ("position", "size", "digit", "letter"):
        several = torch.zeros_like(several)
    values["count"] = torch.where(several, values["count"].clamp(min=1), 0)
    kind = torch.where(several, kind * 0.45, kind)  # only shapes come in numbers
    shape, digit = kind < 0.45, (kind >= 0.45) & (kind < 0.78)
    values["shape"] = torch.where(shape, values["shape"], -1)
    values["texture"] = torch.where(shape, values["texture"], -1)  # strokes are too thin for one
    values["digit"] = torch.where(digit, values["digit"], -1)
    values["letter"] = torch.where(~shape & ~digit, values["letter"], -1)
    for name in ("position", "size"):
        values[name] = torch.where(several, -1, values[name])
    for color, background in _UNSEEN:
        clash = (values["color"] == color) & (values["background"] == background)
        other = torch.randint(8, (size,), generator=generator)
        values["color"] = torch.where(clash, other, values["color"])
    return Scene(values)


def prompts(attribute: str, template: str | None = None) -> list[str]:
    """Every value of an attribute in one template (default: the first)."""
    chosen = template if template is not None else TEMPLATES[attribute][0]
    return [chosen.format(value) for value in ATTRIBUTES[attribute]]


def attribute_texts() -> dict[str, str]:
    """Every value of every attribute in each of its templates -> the attribute, 222 texts.

    A dictionary to explain the bundled model's units with (`analysis.TextDictionary.from_texts`),
    read by people: where a template does not suit its value ("a orange object", "one objects"), or
    ends in a full stop, the text is put right.

    >>> texts = attribute_texts()
    >>> texts["the shape of a heart"], texts["something cyan"], len(texts)
    ('shape', 'color', 222)
    """
    return {
        in_good_english(text): attribute
        for attribute, templates in TEMPLATES.items()
        for template in templates
        for text in prompts(attribute, template)
    }


def in_good_english(text: str) -> str:
    """A filled template as one would say it, without a full stop.

    >>> in_good_english('an image of a arrow'), in_good_english('one objects')
    ('an image of an arrow', 'one object')
    """
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text.replace("one objects", "one object").removesuffix(".")
