"""The one error family for what a user can mend, and text from anywhere made fit to print."""

import difflib
import re
from collections.abc import Collection, Iterable

LONGEST = 300
"""Characters of one value that a message shows."""
LONGEST_MESSAGE = 4000
"""Characters; names in others' files may be longer than that."""

# controls (C0, DEL, C1), marks that change the direction of writing, line and paragraph separators,
# and the halves of pairs that stand for bytes of a file name that is not UTF-8
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""Make text harmless for a terminal or a log: what it must not do is shown instead.

    Names come from files, folders and servers of others: an escape code could rewrite what the
    terminal shows, and a line break could feign a message of this package. What is shown is one
    line that every encoding of UTF-8 takes.

    >>> printable("cat\x1b[2J\ndog")
    'cat\\x1b[2J\\ndog'
    >>> printable("Äpfel, כלב, 猫")
    'Äpfel, כלב, 猫'
    """
    return _HARMFUL.sub(_shown, str(text))


def printable_lines(text: object) -> str:
    """`printable` of each line, for text that is several by intention."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def counted(count: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "image"), counted(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def some(names: Collection[object], most: int = 5) -> str:
    """The first few of some names; a sign where there are more.

    >>> some(["a", "b"]), some("abcdef", 2)
    ('a, b', 'a, b, ...')
    """
    return ", ".join(map(str, list(names)[:most])) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), "") or repr(error)


def short(value: object) -> str:
    """A value as a message names it: one line, cut where it is long."""
    if isinstance(value, str):
        value = value[: 2 * LONGEST]
    elif isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    text = printable(repr(value))
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _shown(match: re.Match[str]) -> str:
    code = match[0].encode("utf-8", "surrogatepass") if match[0] < "\x80" else None
    if code is not None:
        return repr(match[0])[1:-1]
    return f"\\x{ord(match[0]):02x}" if match[0] < "\u0100" else f"\\u{ord(match[0]):04x}"


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


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise a ResiDualError for a name that is none of those known, with the nearest that is."""
    names = list(known)
    for name in given:
        if name in names:
            continue
        near = difflib.get_close_matches(str(name), names, n=1)
        meant = f"; did you mean '{near[0]}'?" if near else f": there are {', '.join(names)}."
        raise ResiDualError(f"'{name}' is not {what}{meant}")


EXTRAS = {
    "datasets": "train",
    "gradio": "explorer",
    "matplotlib": "report",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "rich": "cli",
    "schedulefree": "train",
    "scipy": "train",
    "sklearn": "train",
    "threadpoolctl": "train",
    "tomli": "train",
    "typer": "cli",
}
"""Packages that only some of this one needs -> the extra that installs them."""
APART = ("explorer",)
"""Extras that are not in `all`."""


def missing_extra(error: BaseException) -> "ResiDualError | None":
    """What to install, where an import failed for a package that belongs to an extra.

    Args:
        error: what importing raised.
    """
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name not in EXTRAS:
        return None
    extra = EXTRAS[name]
    rest = "" if extra in APART else ", or 'residual-peft[all]' for everything"
    return ResiDualError(
        f"this needs the package {name}, which is not installed: "
        f"pip install 'residual-peft[{extra}]'{rest}."
    )
