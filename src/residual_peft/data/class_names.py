"""What classes may be called, and the texts that their names are put in."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from ..errors import ResiDualError

_NUMBERED = re.compile(r"(?:n\d{8}|\d+)[-._ ]+(?=[^\W\d])")  # WordNet's numbers, or any
_HUMPED = re.compile(r"(?:[A-Z][a-z]+)+")
_KEBAB = re.compile(r"[a-z]{2,}(?:-[a-z]{2,})+")


def check_class_names(class_names: Iterable[str], least: int = 2) -> tuple[str, ...]:
    """Class names as a tuple.

    Raises:
        ResiDualError: fewer than `least`, one that is empty or no text, or one that occurs twice.
    """
    names = tuple(class_names)
    if isinstance(class_names, str) or not all(isinstance(n, str) and n.strip() for n in names):
        raise ResiDualError(
            f"wanted a list of class names, none of them empty, got {class_names!r}."
        )
    if len(names) < least:
        many = "two classes to tell apart" if least == 2 else "one class"
        raise ResiDualError(f"wanted at least {many}, got {list(names)}.")
    said = [spoken(name) for name in names]
    if len(set(said)) < len(names):
        twice = next(name for name in said if said.count(name) > 1)
        raise ResiDualError(
            f"the class name '{twice}' occurs {said.count(twice)} times (underscores count as "
            "spaces); give each class its own name."
        )
    return names


def check_templates(templates: Iterable[str]) -> tuple[str, ...]:
    """Prompt templates as a tuple; one string counts as one template.

    Raises:
        ResiDualError: none, or one without `{}`.
    """
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates:
        raise ResiDualError("wanted at least one prompt template such as 'a photo of a {}.'.")
    for template in templates:
        if "{}" not in template:
            raise ResiDualError(
                f"the prompt template {template!r} has no '{{}}' where the class name goes."
            )
    return templates


def composed(name: str) -> str:
    """A name in the form that most systems write: macOS and its archives part an ö into o and dots.

    >>> len("o\u0308"), len(composed("o\u0308"))
    (2, 1)
    """
    return unicodedata.normalize("NFC", name)


def spoken(name: str) -> str:
    """A class name as it is put into a prompt: underscores become spaces."""
    return " ".join(name.replace("_", " ").split())


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Class names that folders had, as prompts say them: no numbers before them, and words apart.

    Numbers go where every name begins with one, and words are told by capitals where every name is
    written so, as one folder alone may mean what it says. Names that would be the same stay.

    >>> readable(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
    ('Black footed Albatross', 'Laysan Albatross')
    >>> readable(["n02085620-Chihuahua", "n02085782-Japanese_spaniel"])
    ('Chihuahua', 'Japanese spaniel')
    >>> readable(["GoldenRetriever", "Pug"]), readable(["sea-lion", "x-ray"])
    (('Golden Retriever', 'Pug'), ('sea lion', 'x-ray'))
    >>> readable(["3-door", "hatchback"]), readable(["1_cat", "2_cat"])
    (('3-door', 'hatchback'), ('1 cat', '2 cat'))
    """
    said = list(names)
    if all(_NUMBERED.match(name) for name in said):
        said = [_NUMBERED.sub("", name, count=1) for name in said]
    if all(_HUMPED.fullmatch(name) for name in said):
        said = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) for name in said]
    said = [name.replace("-", " ") if _KEBAB.fullmatch(name) else name for name in said]
    said = [spoken(name) for name in said]
    twice = {name for name in said if said.count(name) > 1}
    return tuple(
        spoken(own) if name in twice else name for own, name in zip(names, said, strict=True)
    )
