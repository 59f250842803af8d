"""Charts stand where their numbers say."""

import re

import numpy as np

from residual_peft.reporting.charts import accuracy_bar, dumbbell, spectrum
from residual_peft.reporting.components import UnitView
from residual_peft.reporting.findings import Accuracy
from residual_peft.towers.units import Unit


def marks(svg: str, kind: str) -> list[dict[str, str]]:
    """The attributes of the elements of a class."""
    found = re.findall(rf'<\w+ class="{kind}"([^>]*)>', svg)
    return [dict(re.findall(r'(\w+)="([^"]*)"', attributes)) for attributes in found]


def test_a_bar_ends_at_the_accuracy_and_its_whisker_at_the_interval() -> None:
    accuracy = Accuracy(30, 40)
    low, high = accuracy.interval
    drawn = accuracy_bar(accuracy, "after")
    assert [mark["width"] for mark in marks(drawn, "after")] == ["75.00%"]
    lines = {(mark["x1"], mark["x2"]) for mark in marks(drawn, "whisker")}
    ends = [f"{100 * bound:.2f}%" for bound in (low, high)]
    assert lines == {(ends[0], ends[1]), (ends[0], ends[0]), (ends[1], ends[1])}


def test_a_ring_is_before_and_a_dot_after() -> None:
    better, worse = dumbbell(0.25, 0.75), dumbbell(0.75, 0.25)
    assert [mark["cx"] for mark in marks(better, "ring")] == ["25.00%"]
    assert [mark["cx"] for mark in marks(better, "dot better")] == ["75.00%"]
    assert [mark["cx"] for mark in marks(worse, "dot worse")] == ["25.00%"]


def test_a_gain_above_one_goes_up_and_one_below_goes_down() -> None:
    gains, eigenvalues = np.array([2.0, 0.5]), np.array([1.0, 0.1])
    nothing = np.zeros(2)
    drawn = spectrum(UnitView(Unit("head", 0, 0), gains, nothing, nothing, eigenvalues))
    (up,), (down,) = (marks(drawn, f"gain {way}")[:1] for way in ("up", "down"))
    assert float(up["y2"]) < float(up["y1"])
    assert float(down["y2"]) > float(down["y1"])
    heights = [float(mark["y1"]) - float(mark["y2"]) for mark in marks(drawn, "eigenvalue")]
    assert heights[0] > heights[1] == 0  # a decade is the whole of the panel
