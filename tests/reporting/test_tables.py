"""Tables and pictures of results."""

import warnings

import numpy as np
import pytest
from PIL import Image

from residual_peft.classifiers.figures import brief, gains_by_place, gains_figure, mean_gain
from residual_peft.errors import ResiDualError
from residual_peft.experiments import Row
from residual_peft.reporting import HEADERS, markdown_table, readable_bytes, table_cells
from residual_peft.towers.units import Unit


def test_a_table_has_one_row_per_method():
    rows = [Row("zero_shot", 0, 0.5, 0, 0.0, 0)]
    rows += [Row("default", seed, 0.9 + 0.01 * seed, 1578, 2.0 + seed, 5530) for seed in range(3)]
    cells = table_cells(rows, {"default": "ours"})
    assert cells == [
        ("zero_shot", "0.500", "0", "–", "–"),
        ("ours", "0.910 ± 0.010", "1,578", "3.0", "5.5 kB"),
    ]
    lines = markdown_table(HEADERS, cells).splitlines()
    assert lines[1] == "|---|---:|---:|---:|---:|"
    assert lines[3] == "| ours | 0.910 ± 0.010 | 1,578 | 3.0 | 5.5 kB |"
    assert len({line.count("|") for line in lines}) == 1
    assert readable_bytes(1_000_000) == "1.0 MB"


def units():
    found = {
        Unit("head", layer, head): [layer + head / 10, layer + head / 10]
        for layer in range(3)
        for head in range(2)
        if (layer, head) != (1, 1)
    }
    return found | {Unit("mlp", 2, None): [5.0, 7.0], Unit("embed", None, None): [100.0]}


def test_gains_have_their_place():
    grid, columns = gains_by_place(units())
    assert columns == ["0", "1", "MLP"]
    np.testing.assert_allclose(grid, [[0.0, 0.1, np.nan], [1.0, np.nan, np.nan], [2.0, 2.1, 6.0]])
    with pytest.raises(ResiDualError, match="wanted gains of heads or MLPs to show by layer"):
        gains_by_place({Unit("output", None, None): [1.0]})


def test_a_mean_is_weighted_by_what_the_gains_scale():
    """Most components write next to nothing, and their gains may go anywhere."""
    gains = {Unit("head", 0, 0): [2.0, -100.0], Unit("mlp", 0): [3.0, 5.0]}
    variance = {Unit("head", 0, 0): [0.99, 0.01], Unit("mlp", 0): [0.0, 0.0]}
    np.testing.assert_allclose(gains_by_place(gains, variance)[0], [[0.98, 4.0]])
    np.testing.assert_allclose(gains_by_place(gains)[0], [[-49.0, 4.0]])
    # rounding may leave an eigenvalue below 0, which weighs nothing
    assert mean_gain([2.0, 7.0], [1.0, -1e-9]) == 2.0
    with warnings.catch_warnings():  # a head whose weights are 0 has no component
        warnings.simplefilter("error")
        assert np.isnan([mean_gain([], []), mean_gain([])]).all()


def test_a_number_for_a_small_cell_is_short():
    numbers = [s * m * 10.0**e for s in (1, -1) for m in (1.0, 4.449, 9.996) for e in range(-4, 13)]
    for value in numbers:
        text = brief(value)
        assert len(text.removeprefix("−")) <= 4
        factor = {"k": 1e3, "M": 1e6}.get(text[-1], 1.0)
        read = float(text.replace("−", "-").rstrip("kM")) * factor
        assert read == pytest.approx(value, rel=0.13, abs=0.005)
        assert text.startswith("−") == (read < 0)


def test_the_picture_is_a_picture(tmp_path):
    gains_figure(units(), tmp_path / "gains.png")
    with Image.open(tmp_path / "gains.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["gains.png"]
