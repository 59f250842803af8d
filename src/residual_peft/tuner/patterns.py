"""Regular expressions that cannot hang: matched by sets of positions, as a config's patterns are.

`re` backtracks, so that `((a|b)+)+c` from a stranger's adapter_config.json takes longer than anyone
waits. Patterns that could make it do so are matched otherwise: each part of a pattern leads from
the positions where it may begin to those where it may end, and what a part does at a position is
worked out once, so that it takes (parts) · (length of the text)² steps at most.
"""

import math
import re
import warnings
from collections.abc import Callable
from functools import cache, cached_property, lru_cache
from itertools import groupby
from typing import Any

from ..errors import ResiDualError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    try:
        from re import _compiler as sre_compile  # type: ignore[attr-defined]
        from re import _parser as sre_parser  # type: ignore[attr-defined]
    except ImportError:  # Python 3.10
        import sre_compile
        import sre_parse as sre_parser

LONGEST = 2000
"""Characters of a pattern; names of modules and units, which it is for, are far shorter."""
MOST_PARTS = 100  # of a pattern that `re` might hang on; a run of plain characters is one part
_QUICK = 1e5  # ways through a pattern that `re` may be left to try

_PLAIN = {"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"}
"""What matches in one way at most: `re` may read it."""


def check_pattern(pattern: str, field: str) -> None:
    """Refuse what is no regex, or has what `fullmatch` does not know; `field` names the option."""
    try:
        _parsed(pattern)
    except (re.error, RecursionError, OverflowError, _UnknownError) as error:
        said = pattern if len(pattern) <= 100 else f"{pattern[:100]} …"
        raise ResiDualError(f"{field}: {said!r} is no regex ({error}).") from None


def fullmatch(pattern: str, text: str) -> bool:
    """Whether a regex stands for the whole of a text: `re.fullmatch`, in bounded time."""
    check_pattern(pattern, "pattern")
    part = _parsed(pattern)
    if part.ways <= _QUICK:
        return re.fullmatch(pattern, text) is not None
    return len(text) in _Matcher(text).ends(part, 0)


def pattern_key(keys: list[str], name: str) -> str:
    """PEFT's `get_pattern_key`: the first key that matches the end of a name, else the name."""
    for key in keys:
        if fullmatch(rf"(.*\.)?({key})", name):
            return key
    return name


class _UnknownError(Exception):
    """A pattern has what positions alone cannot answer."""


class _Part:
    """A part of a pattern, with an identity to remember its answers by."""

    def __init__(self, kind: str, value: Any = None, inner: "tuple[_Part, ...]" = ()) -> None:
        self.kind, self.value, self.inner = kind, value, inner
        self.size: int = 1 + sum(part.size for part in inner)  # parts in it, itself included

    @cached_property
    def ways(self) -> float:
        """How often backtracking may try what comes after it, in names of usual length."""
        if self.kind == "branch":
            return sum(part.ways for part in self.inner)
        if self.kind != "repeat":
            return math.prod(part.ways for part in self.inner)
        (least, most), inner = self.value, self.inner[0]
        if most <= 1:
            return 1 + inner.ways
        alone = [part.kind for part in inner.inner] == ["plain"]
        return 1.0 + min(most - least, 64) if alone else math.inf


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> _Part:
    if len(pattern) > LONGEST:
        raise _UnknownError(f"it has {len(pattern)} characters; at most {LONGEST} will do")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what later Pythons will read otherwise
        tree = sre_parser.parse(pattern)
    if tree.state.flags & ~re.UNICODE:
        raise _UnknownError("flags such as (?i) are not known here; spell them out")
    part = _sequence(tree)
    if part.ways > _QUICK and part.size > MOST_PARTS:
        raise _UnknownError(f"it has {part.size} parts with many ways through; wanted {MOST_PARTS}")
    return part


def _sequence(items: Any) -> _Part:
    parts: list[_Part] = []
    for plain, run in groupby(items, key=lambda item: str(item[0]) in _PLAIN):
        if plain:
            whole = sre_parser.SubPattern(items.state, list(run))
            parts.append(_Part("plain", sre_compile.compile(whole)))
        else:
            parts += [_part(str(op), value) for op, value in run]
    return _Part("sequence", None, tuple(parts))


def _part(kind: str, value: Any) -> _Part:
    if kind == "BRANCH":
        return _Part("branch", None, tuple(_sequence(items) for items in value[1]))
    if kind == "SUBPATTERN":
        if value[1] or value[2]:
            raise _UnknownError("flags such as (?i:...) are not known here; spell them out")
        return _sequence(value[3])
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        return _Part("repeat", (int(value[0]), int(value[1])), (_sequence(value[2]),))
    if kind in ("ASSERT", "ASSERT_NOT"):
        behind = value[0] < 0
        return _Part("look", (behind, kind == "ASSERT"), (_sequence(value[1]),))
    raise _UnknownError(f"{kind.lower().replace('_', ' ')}s are not known here")


class _Matcher:
    """Where the parts of a pattern end in one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        # the positions at which a part that begins at one may end, worked out once
        self.ends: Callable[[_Part, int], set[int]] = cache(self._ends)

    def _all(self, part: _Part, starts: set[int]) -> set[int]:
        return {end for start in starts for end in self.ends(part, start)}

    def _ends(self, part: _Part, start: int) -> set[int]:
        text = self.text
        if part.kind == "sequence":
            found = {start}
            for item in part.inner:
                found = self._all(item, found)
            return found
        if part.kind == "plain":
            here = part.value.match(text, start)
            return set() if here is None else {here.end()}
        if part.kind == "branch":
            return {end for item in part.inner for end in self.ends(item, start)}
        if part.kind == "repeat":
            return self._repeated(part, start)
        behind, wanted = part.value
        inner = part.inner[0]
        if behind:
            seen = any(start in self.ends(inner, begin) for begin in range(start + 1))
        else:
            seen = bool(self.ends(inner, start))
        return {start} if seen == wanted else set()

    def _repeated(self, part: _Part, start: int) -> set[int]:
        least, most = part.value
        inner, longest = part.inner[0], len(self.text) + 1
        now = {start}
        for _ in range(min(least, longest)):  # after that, only empty matches could be left
            before, now = now, self._all(inner, now)
            if now == before:
                break
        found, frontier = set(now), now
        for _ in range(min(most - least, longest)):
            frontier = self._all(inner, frontier) - found
            if not frontier:
                break
            found |= frontier
        return found
