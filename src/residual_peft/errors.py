"""The one error family for what a user can mend."""

from .terminal import printable

LONGEST_MESSAGE = 4000
"""Characters; names in others' files may be longer than that."""


class ResiDualError(ValueError):
    """Something the user can mend: says what was wanted, what was got and what to do.

    Its text is one line that may be printed, whatever names from others' files it holds, and then
    an example where there is one. Anything else that is raised from this package is a bug and
    keeps its traceback.
    """

    def __init__(self, message: object = "", example: str = "") -> None:
        text = printable(message)
        text = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} …"
        lines = [text, *(map(printable, example.split("\n")) if example else [])]
        super().__init__("\n".join(lines))
