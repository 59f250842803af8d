"""The writers to a tower's residual stream, by name."""

import re
from dataclasses import dataclass

from ..errors import ResiDualError, short

UNIT_KINDS = ("embed", "head", "mlp", "pooler", "output")
_UNIT_NAME = re.compile(r"layer([0-9]{1,9})\.(?:mlp|head([0-9]{1,9}))")


@dataclass(frozen=True)
class Unit:
    """One writer to the residual stream, or `output` for the readout as a whole.

    `pooler` is the MLP after an attention pooling, which writes to the readout itself.

    >>> str(Unit("head", 3, 5)), str(Unit("mlp", 3)), str(Unit("embed"))
    ('layer3.head5', 'layer3.mlp', 'embed')
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in UNIT_KINDS:
            raise ResiDualError(
                f"unknown unit kind {self.kind!r}; the kinds are {', '.join(UNIT_KINDS)}."
            )
        wanted = (self.kind in ("head", "mlp"), self.kind == "head")
        if wanted != (self.layer is not None, self.head is not None):
            raise ResiDualError(
                f"a unit of kind {self.kind!r} has a layer: {wanted[0]}, a head: {wanted[1]}; "
                f"got layer={self.layer}, head={self.head}."
            )

    def __str__(self) -> str:
        if self.kind == "head":
            return f"layer{self.layer}.head{self.head}"
        return self.kind if self.layer is None else f"layer{self.layer}.{self.kind}"

    @classmethod
    def parse(cls, text: str) -> "Unit":
        """Read what `str(unit)` wrote.

        >>> Unit.parse("layer3.head5")
        Unit(kind='head', layer=3, head=5)

        Raises:
            ResiDualError: `text` is not the name of a unit.
        """
        if text in ("embed", "pooler", "output"):
            return cls(text)
        if found := _UNIT_NAME.fullmatch(text):
            layer, head = int(found[1]), found[2]
            return cls("mlp", layer) if head is None else cls("head", layer, int(head))
        raise ResiDualError(
            f"{short(text)} is not the name of a unit; wanted 'embed', 'layer3.head5', "
            "'layer3.mlp', 'pooler' or 'output'."
        )
