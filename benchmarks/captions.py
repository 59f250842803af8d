"""What captions say of the bundled model's world, and of which images they are true.

For `pretraining.py`, which shows the model images with captions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from residual_peft.demo.world import ATTRIBUTES, TEMPLATES, Scene, prompts

DIGIT_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip


def matrix(scene: Scene) -> Tensor:
    """The attributes as one (B, number of attributes) matrix in the order of ATTRIBUTES."""
    return torch.stack([scene.values[name] for name in ATTRIBUTES], dim=1)


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
    told = (matrix(scene).tolist(), named.tolist(), styles.tolist())
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
    images, texts = matrix(scene), matrix(captioned)
    said = named & (texts >= 0)
    agrees = images[:, None, :] == texts[None, :, :]
    return (agrees | ~said[None]).all(-1)


def vocabulary_text() -> Sequence[str]:
    """All the words that captions and prompts are made of, to train the tokenizer on."""
    lines = [
        text for name, every in TEMPLATES.items() for one in every for text in prompts(name, one)
    ]
    lines += [f"{name} {name}s" for name in ATTRIBUTES["shape"]]
    lines += [f"the digit {word}, the number {word}" for word in DIGIT_WORDS]
    return lines
