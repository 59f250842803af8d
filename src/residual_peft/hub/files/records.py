"""A JSON file -> a dataclass, every field of the type that it says; for files of strangers, too."""

import dataclasses
import functools
import math
import types
from collections import abc
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ...errors import ResiDualError, short
from ..places import PathLike
from .looking import quoted
from .parsing import MAX_BYTES, read_json

T = TypeVar("T")

ADVICE = "It may be of another kind or version, or changed by hand: save or download it again."
_INT64 = 2**63


@dataclasses.dataclass(frozen=True)
class Within:
    """Bounds of a number, or of how many items a list, a dict or a text has: `Annotated[int, …]`.

    ```python
    images: Annotated[int, Within(1, 10**9)]
    ```
    """

    least: float = -math.inf
    most: float = math.inf


Count = Annotated[int, Within(0, 2**31)]


def read_record(
    path: PathLike,
    cls: type[T],
    *,
    max_bytes: int = MAX_BYTES,
    unknown: Literal["refuse", "ignore"] = "refuse",
) -> T:
    """Read a JSON file of at most `max_bytes` into a dataclass, with every field checked.

    The types may be bool, int (64 bits), float (finite; a whole number will do), str, None, Any,
    other dataclasses, tuples, lists, dicts and mappings with keys of str, Literal, unions of these,
    Annotated with `Within`, and classes that `parse` a text. Fields that have a default may be
    missing.

    Raises:
        ResiDualError: the file is missing, no regular file, too large or no JSON; or a field is
            missing, unknown or of another type. Names the file and the field.
    """
    return record_of(read_json(path, max_bytes=max_bytes), cls, quoted(path), unknown=unknown)


def record_of(
    value: Any,
    cls: type[T],
    what: str,
    *,
    unknown: Literal["refuse", "ignore"] = "refuse",
    advice: str = ADVICE,
) -> T:
    """`read_record` of what a file has given; `what` it is and `advice` are for messages."""
    try:
        return _Reader(unknown == "refuse").read(value, cls, "")
    except _MisfitError as misfit:
        raise ResiDualError(f"{what}{misfit.where}: {misfit.why}. {advice}") from None


def plain_of(value: Any) -> Any:
    """A dataclass and all in it as JSON has it, such that `record_of` reads it."""
    if hasattr(type(value), "parse"):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {f.name: plain_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain_of(item) for name, item in value.items()}
    return [plain_of(item) for item in value] if isinstance(value, list | tuple) else value


class _MisfitError(Exception):
    """A value at a place that wants another; `why` where its type fits, and something else not."""

    def __init__(
        self, place: str, expected: str = "", got: str = "", *, why: str | None = None
    ) -> None:
        super().__init__(place)
        self.depth = len(place) + (why is not None)
        self.place, self.where = place, f", field {place[1:]}" if place else ""
        self.why = why or f"wanted {expected}, got {got}"


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Values as JSON gives them -> values of given types."""

    strict: bool

    def read(self, value: Any, hint: Any, place: str) -> Any:
        """`value` as `hint` says; its place is such as ".units[3]"."""
        origin, args = get_origin(hint), get_args(hint)
        if hint is Any:
            return value
        if origin is Annotated:
            return _bounded(self.read(value, args[0], place), args[1:], place)
        if origin in (Union, types.UnionType):
            return self._one_of(value, hint, place)
        if origin is Literal:
            if not any(type(value) is type(known) and value == known for known in args):
                raise _MisfitError(place, _words(hint), short(value))
            return value
        if hasattr(hint, "parse"):
            return _checked(functools.partial(hint.parse, self.read(value, str, place)), place)
        if dataclasses.is_dataclass(hint):
            return self._dataclass(value, hint, place)
        if (origin or hint) in (tuple, list, abc.Sequence):
            return self._items(value, hint, place)
        if (origin or hint) in (dict, abc.Mapping):
            if not isinstance(value, dict):
                raise _MisfitError(place, _words(hint), short(value))
            inner = args[1] if args else Any
            return {key: self.read(item, inner, f"{place}.{key}") for key, item in value.items()}
        return _scalar(value, hint, place)

    def _one_of(self, value: Any, hint: Any, place: str) -> Any:
        # a whole number is one where both kinds of number are wanted
        kinds = sorted(get_args(hint), key=lambda kind: kind is float)
        deepest: _MisfitError | None = None
        for kind in kinds:
            try:
                return self.read(value, kind, place)
            except _MisfitError as misfit:
                if deepest is None or misfit.depth > deepest.depth:
                    deepest = misfit
        if deepest is None or deepest.depth == len(place):
            raise _MisfitError(place, _words(hint), short(value))
        raise deepest  # what is wrong inside says more than that no kind fits

    def _dataclass(self, value: Any, cls: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise _MisfitError(place, "fields by name", short(value))
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        if self.strict and (others := [name for name in value if name not in fields]):
            raise _MisfitError(place, f"no other fields than {', '.join(fields)}", short(others[0]))
        hints = _hints(cls)
        found = {}
        for name, field in fields.items():
            if name in value:
                found[name] = self.read(value[name], hints[name], f"{place}.{name}")
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise _MisfitError(f"{place}.{name}", _words(hints[name]), "none")
        return _checked(functools.partial(cls, **found), place)

    def _items(self, value: Any, hint: Any, place: str) -> Any:
        origin, args = get_origin(hint) or hint, get_args(hint)
        if not isinstance(value, list):
            raise _MisfitError(place, _words(hint), short(value))
        fixed = origin is tuple and args and args[-1] is not Ellipsis
        if fixed and len(value) != len(args):
            raise _MisfitError(place, _words(hint), f"{len(value)} values")
        kinds = args if fixed else [args[0] if args else Any] * len(value)
        found = [
            self.read(item, kind, f"{place}[{number}]")
            for number, (item, kind) in enumerate(zip(value, kinds, strict=True))
        ]
        return found if origin is list else tuple(found)


def _checked(make: abc.Callable[[], Any], place: str) -> Any:
    """What something makes, or why its own checks refuse it."""
    try:
        return make()
    except ResiDualError as error:
        raise _MisfitError(place, why=str(error).rstrip(".")) from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _scalar(value: Any, kind: Any, place: str) -> Any:
    if kind is None or kind is types.NoneType:
        fits = value is None
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and math.isfinite(value)
        value = float(value) if fits else value
    elif kind is int:
        fits = type(value) is int and -_INT64 <= value < _INT64
    elif kind in (bool, str):
        fits = type(value) is kind
    else:
        raise TypeError(f"records have no fields of type {kind!r}")
    if not fits:
        raise _MisfitError(place, _words(kind), short(value))
    return value


def _bounded(value: Any, bounds: tuple[Any, ...], place: str) -> Any:
    for bound in bounds:
        if not isinstance(bound, Within) or value is None:
            continue
        number = isinstance(value, int | float)
        size = value if number else len(value)
        if not bound.least <= size <= bound.most:
            unit = "a number" if number else "a length"
            got = short(value) if number else f"{size:,}"
            why = f"wanted {unit} from {bound.least:.10g} to {bound.most:.10g}, got {got}"
            raise _MisfitError(place, why=why)
    return value


_NAMES = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    types.NoneType: "null",
    None: "null",
    Any: "anything",
}


def _words(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_words(kind) for kind in args)
    if origin is Literal:
        return " or ".join(repr(value) for value in args)
    if (origin or hint) in (dict, abc.Mapping):
        return f"fields by name, each {_words(args[1])}" if args else "fields by name"
    if (origin or hint) in (tuple, list, abc.Sequence):
        if origin is tuple and args[-1] is not Ellipsis:
            return f"a list of {len(args)}: {', '.join(_words(kind) for kind in args)}"
        return f"a list, each {_words(args[0])}" if args else "a list"
    return "fields by name" if dataclasses.is_dataclass(hint) else _NAMES.get(hint, f"{hint}")
