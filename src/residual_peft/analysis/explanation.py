"""Words for units and for components: few texts that explain most of what they write.

`method.md`, section 6. A unit's X (N, d) is what it wrote to N readouts, its mean taken out; texts
are atoms Θ (M, d). All is computed in the unit's own k axes, with fits in R^d (see `pursuit`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bases.basis import SpectralBasis
from ..data.progress import Bar
from ..errors import ResiDualError
from ..towers.units import Unit
from .contributions import Contributions, UnitContribution
from .dictionary import TextDictionary
from .pursuit import Pursuit, omp, somp, text_span

METHODS = ("somp", "textspan", "omp")

_CONSTANT = 1e-12  # of the squared mean: float32 tells no two images apart by less

Units = Iterable[Unit | str] | Unit | str | None


@dataclass(frozen=True)
class Explanation:
    """The texts chosen for a unit, or for one of its components, most telling first.

    Attributes:
        unit: whose.
        method: "somp", "textspan" or "omp".
        texts: s texts; fewer than were asked for once nothing was left to explain, none for a unit
            that writes the same to every image.
        indices: their places in the dictionary.
        explained: s shares, each counting all texts up to there. For a unit, of its total variance:
            what lies in the span of the chosen embeddings (for TextSpan, of their parts in the span
            of the unit: by that count ten random directions explain nine tenths of a small head, so
            compare shares of one method only). For a component, of its squared length.
        coefficients: for a component, how its direction is made of the texts: text i has
            coefficients[i]. A component's sign is arbitrary: read the signs against each other, and
            against the coordinates, which have the same ("red +, blue −": an image with a positive
            coordinate gets more of red and less of blue). None for a unit.
        component: which component, from 0; None for a whole unit.
    """

    unit: Unit
    method: str
    texts: tuple[str, ...]
    indices: tuple[int, ...]
    explained: tuple[float, ...]
    coefficients: tuple[float, ...] | None = None
    component: int | None = None

    def __str__(self) -> str:
        """One line.

        >>> print(Explanation(Unit("mlp", 3), "somp", ("red", "blue"), (4, 0), (0.5, 0.625)))
        layer3.mlp (somp): red 50.0%, blue 62.5%
        >>> signed = Explanation(Unit("embed"), "omp", ("red",), (4,), (0.25,), (-0.5,), 2)
        >>> print(signed)
        embed, component 2 (omp): -0.50 red 25.0%
        """
        place = "" if self.component is None else f", component {self.component}"
        signs = [f"{value:+.2f} " for value in self.coefficients or ()] or [""] * len(self.texts)
        parts = zip(signs, self.texts, self.explained, strict=True)
        said = ", ".join(f"{sign}{text} {share:.1%}" for sign, text, share in parts)
        return f"{self.unit}{place} ({self.method}): {said or 'nothing to explain'}"


def explain_units(
    contributions: Contributions,
    dictionary: TextDictionary,
    method: str = "somp",
    steps: int = 10,
    units: Units = None,
    *,
    rank: int = 80,
    progress: bool = False,
) -> list[Explanation]:
    """Texts that explain what each unit writes, its mean over these images taken out.

    SOMP costs N·k·M multiplications a step and unit, TextSpan next to nothing; a few thousand
    images are enough (`contributions.rows`).

    Args:
        contributions: of N images.
        dictionary: M texts, of the readout's width.
        method: "somp"; "textspan"; or "omp", for the unit's first component alone, as
            `explain_components` explains it.
        steps: texts per unit.
        units: kinds ("head"), names ("layer3.head5") or `Unit`s; None for all.
        rank: for TextSpan, the first right singular vectors that texts are projected on.
        progress: whether to show a bar.

    Raises:
        ResiDualError: an unknown method or unit, a dictionary of another width, or more steps than
            texts.
    """
    if method not in METHODS:
        raise ResiDualError(f"wanted method {' or '.join(map(repr, METHODS))}, got {method!r}.")
    if method == "omp":
        return explain_components(contributions, dictionary, units, 1, steps)
    chosen = _choose(contributions, dictionary, units)
    atoms = dictionary.embeddings
    found = []
    for unit in Bar(chosen, "Explaining units", unit="unit", disable=not progress):
        c, frame = _centred(contributions[unit])
        if method == "somp":
            pursuit = somp(c, atoms, steps, frame=frame)
        else:
            pursuit = text_span(c, atoms, steps, rank=rank, frame=frame)
        found.append(_explanation(unit, method, dictionary, pursuit.indices, pursuit.explained))
    return found


def explain_components(
    source: Contributions | SpectralBasis,
    dictionary: TextDictionary,
    units: Units = None,
    components: int | Iterable[int] | None = None,
    steps: int = 5,
) -> list[Explanation]:
    """Texts that components are made of, by OMP of each direction; those of all units at once.

    Args:
        source: contributions, or a basis of the readout.
        dictionary: M texts, of the readout's width.
        units: kinds ("head"), names ("layer3.head5") or `Unit`s; None for all.
        components: an int for the first so many of each unit (or all it has), their numbers from 0,
            or None for all.
        steps: texts per component.

    Returns:
        Unit by unit, component by component.

    Raises:
        ResiDualError: an unknown unit, a component that a unit does not have, a dictionary of
            another width, or more steps than texts.
    """
    wanted, rows = [], []
    for unit in _choose(source, dictionary, units):
        directions = source[unit].components
        numbers = _numbers(unit, components, len(directions))
        wanted += [(unit, number) for number in numbers]
        rows.append(directions[numbers].double().cpu())
    if not wanted:
        return []
    pursuit: Pursuit = omp(torch.cat(rows), dictionary.embeddings, steps)
    assert pursuit.coefficients is not None
    return [
        _explanation(unit, "omp", dictionary, indices, explained, coefficients, number)
        for (unit, number), indices, explained, coefficients in zip(
            wanted, pursuit.indices, pursuit.explained, pursuit.coefficients, strict=True
        )
    ]


def _centred(part: UnitContribution) -> tuple[Tensor, Tensor]:
    """Coordinates of mean zero and their frame; all zero where there is but rounding."""
    c = part.coordinates.to(torch.promote_types(part.coordinates.dtype, torch.float32))
    middle = c.double().mean(0)  # `Contributions.rows` leaves the mean of all images
    c = c - middle.to(c.dtype)
    if c.double().square().mean(0).sum() <= _CONSTANT * part.mean.square().sum():
        return c.new_zeros(len(c), 1), part.components.new_zeros(1, len(part.mean))
    return c, part.components


def _explanation(
    unit: Unit,
    method: str,
    dictionary: TextDictionary,
    indices: Tensor,
    explained: Tensor,
    coefficients: Tensor | None = None,
    component: int | None = None,
) -> Explanation:
    kept = indices >= 0
    places = tuple(indices[kept].tolist())
    return Explanation(
        unit=unit,
        method=method,
        texts=tuple(dictionary.texts[place] for place in places),
        indices=places,
        explained=tuple(explained[kept].tolist()),
        coefficients=None if coefficients is None else tuple(coefficients[kept].tolist()),
        component=component,
    )


def _choose(
    source: Contributions | SpectralBasis, dictionary: TextDictionary, units: Units
) -> list[Unit]:
    """The units asked for, in the order of the source."""
    if dictionary.width != source.width:
        raise ResiDualError(
            f"wanted a dictionary of the readout's width {source.width}, got one of width "
            f"{dictionary.width}; embed its texts with the text tower of the same model."
        )
    if units is None:
        return list(source.units)
    names = [str(u) for u in ([units] if isinstance(units, str | Unit) else units)]
    known = {name for unit in source.units for name in (unit.kind, str(unit))}
    if unknown := [name for name in names if name not in known]:
        raise ResiDualError(
            f"there is no unit '{unknown[0]}' to explain; there are {len(source.units)}, "
            f"{source.units[0]} to {source.units[-1]}."
        )
    return [unit for unit in source.units if unit.kind in names or str(unit) in names]


def _numbers(unit: Unit, components: int | Iterable[int] | None, held: int) -> list[int]:
    if components is None:
        return list(range(held))
    if isinstance(components, int):
        if components < 1:
            raise ResiDualError(f"wanted at least the first component, got {components}.")
        return list(range(min(components, held)))
    numbers = list(components)
    if outside := [number for number in numbers if not 0 <= number < held]:
        raise ResiDualError(
            f"{unit} has {held} components, 0 to {held - 1}; there is no component {outside[0]}."
        )
    return numbers
