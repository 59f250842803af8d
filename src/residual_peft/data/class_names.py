"""What classes may be called, and the texts that their names are put in."""

from collections.abc import Iterable

from ..errors import ResiDualError


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


def spoken(name: str) -> str:
    """A class name as it is put into a prompt: underscores become spaces."""
    return " ".join(name.replace("_", " ").split())
