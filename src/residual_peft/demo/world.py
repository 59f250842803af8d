"""The bundled model's world: what its images show, how captions speak of them, its tasks.

An image shows one object, or two or three equal ones: a shape, a printed digit or a printed letter.
Every attribute below is drawn at random and named by captions. There is no handwriting in it.
"""

import re
from collections.abc import Sequence
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

DIGIT_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip

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

    def matrix(self) -> Tensor:
        """The attributes as one (B, number of attributes) matrix in the order of ATTRIBUTES."""
        return torch.stack([self.values[name] for name in ATTRIBUTES], dim=1)


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


def _phrase(row: dict[str, str], style: int) -> str:
    words = [row.get("size", ""), row.get("color", ""), row.get("texture", "")]
    if "shape" in row:
        noun = row["shape"]
    elif "digit" in row:
        digit = row["digit"] if style % 2 else DIGIT_WORDS[int(row["digit"])]
        noun = ("digit " if style % 3 else "number ") + digit
    elif "letter" in row:
        noun = "letter " + row["letter"]
    else:
        noun = "object"
    if row.get("count", "one") != "one":
        words.insert(0, row["count"])
        noun += "es" if noun == "cross" else "s"
    else:
        first = next((word for word in words if word), noun)
        words.insert(0, "an" if first[0] in "aeiou" else "a")
    phrase = " ".join([word for word in words if word] + [noun])
    if "position" in row:
        phrase += f" at the {row['position']}"
    if "background" in row:
        phrase += f" on a {row['background']} background"
    return ("", "an image of ", "a photo of ", "")[style % 4] + phrase


def captions(scene: Scene, named: Tensor, generator: torch.Generator) -> list[str]:
    """One caption per image that names some of its attributes.

    `named` (B, number of attributes) says which, where they apply; the generator chooses between
    ways to say it.
    """
    styles = torch.randint(12, (len(scene),), generator=generator)
    told = (scene.matrix().tolist(), named.tolist(), styles.tolist())
    result = []
    for row, mask, style in zip(*told, strict=True):
        words = {
            name: ATTRIBUTES[name][value]
            for name, value, keep in zip(ATTRIBUTES, row, mask, strict=True)
            if keep and value >= 0
        }
        result.append(_phrase(words, style))
    return result


def caption_truth(scene: Scene, captioned: Scene, named: Tensor) -> Tensor:
    """Which captions are true of which images, (B, M) bool.

    A caption is true of an image when every attribute that it names, in `named` (M, number of
    attributes), has that value there. So equal captions, and shorter ones that happen to fit, count
    as positives.
    """
    images, texts = scene.matrix(), captioned.matrix()
    said = named & (texts >= 0)
    agrees = images[:, None, :] == texts[None, :, :]
    return (agrees | ~said[None]).all(-1)


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


def vocabulary_text() -> Sequence[str]:
    """All the words that captions and prompts are made of, to train the tokenizer on."""
    lines = [
        text for name, every in TEMPLATES.items() for one in every for text in prompts(name, one)
    ]
    lines += [f"{name} {name}s" for name in ATTRIBUTES["shape"]]
    lines += [f"the digit {word}, the number {word}" for word in DIGIT_WORDS]
    return lines
