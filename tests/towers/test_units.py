"""Units and their names."""

import pytest

from residual_peft.errors import ResiDualError
from residual_peft.towers.units import Unit
from tests.pairs import table


@table("unit", [Unit("embed"), Unit("head", 3, 15), Unit("mlp", 12), Unit("output")], ids=str)
def test_a_unit_is_read_back_from_its_name(unit: Unit) -> None:
    assert Unit.parse(str(unit)) == unit


@table(
    "text", ["", "layer3", "layer3.head", "layerx.mlp", "layer-1.mlp", "head", "embed.mlp", "mlp"]
)
def test_a_name_of_no_unit_is_refused(text: str) -> None:
    with pytest.raises(ResiDualError, match="is not the name of a unit; wanted 'embed'"):
        Unit.parse(text)


def test_a_unit_has_the_indices_of_its_kind() -> None:
    with pytest.raises(ResiDualError, match="unknown unit kind 'neuron'; the kinds are embed"):
        Unit("neuron")
    with pytest.raises(ResiDualError, match="a unit of kind 'head' has a layer: True"):
        Unit("head", 3)
    with pytest.raises(ResiDualError, match="a unit of kind 'embed'"):
        Unit("embed", 0)
