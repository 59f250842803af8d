"""The one error family for what a user can mend."""

from .terminal import printable


class ResiDualError(ValueError):
    """Something the user can mend: says what was wanted, what was got and what to do.

    Its text is one line that may be printed, whatever names from others' files it holds, and then
    an example where there is one. Anything else that is raised from this package is a bug and
    keeps its traceback.
    """

    def __init__(self, message: object = "", example: str = "") -> None:
        lines = [message, *(example.split("\n") if example else [])]
        super().__init__("\n".join(map(printable, lines)))
