"""JSON that may come from anybody -> plain values, within bounds."""

import json
from typing import Any

from ...errors import ResiDualError, short
from ..places import PathLike
from .looking import quoted, read_bytes

MAX_BYTES = 16 * 2**20
"""Of a JSON file. Its values take at most 40 times that in memory (lists of empty dicts do)."""
MAX_DEPTH = 64
"""Of lists and dicts in each other; what this package writes has 6."""
MAX_DIGITS = 19


def read_json(path: PathLike, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file that may come from anybody: UTF-8, standard JSON, within bounds.

    Raises:
        ResiDualError: the file is missing, no regular file, larger than `max_bytes` or no JSON;
            it is nested deeper than `MAX_DEPTH`, has integers of more than `MAX_DIGITS` digits,
            NaN or infinity, or names a field twice.
    """
    return parse_json(read_bytes(path, max_bytes), quoted(path))


def parse_json(content: bytes, what: str) -> Any:
    """`read_json` of bytes that are at hand; `what` names them in messages.

    Raises:
        ResiDualError: as there.
    """
    try:
        # some editors put a byte order mark in front
        value = json.loads(
            content.decode("utf-8-sig"),
            parse_int=_whole_number,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
        deep = _lies_deep(value)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResiDualError(f"{what} is not JSON ({error}); it may have been cut short.") from None
    except _RefusedError as refused:
        raise ResiDualError(f"{what} holds {refused}; no such file is read.") from None
    except RecursionError:  # json's own, of what is deeper still
        deep = True
    if deep:
        raise ResiDualError(
            f"{what} holds lists or objects nested deeper than {MAX_DEPTH}; no such file is read."
        )
    return value


def read_object(path: PathLike, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """`read_json` of a file with fields by name, whatever they are.

    Raises:
        ResiDualError: as there, or it holds something else.
    """
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise ResiDualError(
            f"wanted {quoted(path)} with fields by name, got {short(value)}; it is of another kind."
        )
    return value


class _RefusedError(Exception):
    """What JSON has that no file of ours does."""


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS + 1:  # and a sign
        raise _RefusedError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _constant(name: str) -> float:
    raise _RefusedError(f"{name}, which is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise _RefusedError(f"the field {short(twice)} twice")
    return found


def _lies_deep(value: Any) -> bool:
    """Whether lists and dicts lie in each other too deep, told without recursion."""
    floor = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = [item for item in floor if isinstance(item, dict | list)]
        if not inside:
            return False
        floor = []
        for whole in inside:
            floor += whole.values() if isinstance(whole, dict) else whole
    return True
