"""The paper's figures say what the results say, on an axis that is given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from residual_peft import ResiDualError, SpectralBasis
from residual_peft.analysis import (
    compare_selections,
    dimension_profile,
    layer_ablation,
    overlap,
    spectral_similarity,
)
from residual_peft.experiments import Row
from residual_peft.reporting.figures import (
    draw_ablation,
    draw_dimension,
    draw_overlap,
    draw_radar,
    draw_selection,
    draw_similarity,
    save_figure,
)
from residual_peft.towers.units import Unit
from tests.analysis.selection_case import SIZE, case, classes
from tests.models import clip_model, pixels


def axis(polar: bool = False):
    return Figure().add_subplot(projection="polar" if polar else None)


def lines(drawn) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in drawn.get_lines()
    }


def test_dimension_by_layer() -> None:
    profile, drawn = dimension_profile(case().seen), axis()
    draw_dimension(profile, drawn)
    found, layers = lines(drawn), profile.by_layer()
    heads = [row for row in layers if row.kind == "head"]
    mlps = [row for row in layers if row.kind == "mlp"]
    assert found["linear dimension, heads"] == ([0, 1, 2], [row.linear for row in heads])
    assert found["TwoNN dimension, MLPs"] == ([0, 1, 2], [row.two_nn for row in mlps])
    assert len(found) == 4
    one = axis()
    draw_dimension(profile, one, ["first_share"])
    assert one.get_ylabel() == "variance along the first direction"
    with pytest.raises(ResiDualError, match="wanted measures of linear, two_nn"):
        draw_dimension(profile, axis(), ["size"])


def test_a_spectrum_alone_has_no_two_nn_to_draw() -> None:
    basis = SpectralBasis.fit(clip_model(SIZE), [pixels(40, SIZE)])
    drawn = axis()
    draw_dimension(dimension_profile(basis), drawn)
    assert set(lines(drawn)) == {"linear dimension, heads", "linear dimension, MLPs"}


def test_similarity_blocks() -> None:
    basis = SpectralBasis.fit(clip_model(SIZE), [pixels(40, SIZE)], units=["head"])
    matrix, drawn = spectral_similarity(basis), axis()
    image = draw_similarity(matrix, drawn)
    shown = image.get_array().filled(np.nan)
    assert np.isnan(np.diag(shown)).all()
    away = ~np.eye(len(shown), dtype=bool)
    np.testing.assert_allclose(shown[away], matrix.values.numpy()[away])
    assert [tick.get_text() for tick in drawn.get_xticklabels()] == ["0", "1", "2"]
    assert list(drawn.get_xticks()) == [3.5, 11.5, 19.5]
    named = axis()
    draw_similarity(matrix, named, label_units=True)
    assert named.get_yticklabels()[9].get_text() == "layer1.head1"


def test_selection_curves() -> None:
    study = compare_selections(case(1).seen, case(2).seen, classes())
    drawn = axis()
    draw_selection(study, drawn)
    found = lines(drawn)
    curve = study.curve("S")
    x, y = found["by own accuracy (S)"]
    assert x == [point.units for point in curve.points]
    np.testing.assert_allclose(y, [point.accuracy for point in curve.points])
    assert set(found["all heads (H)"][1]) == {study.line("H").accuracy}
    assert len(drawn.collections) == 1  # the band of the random draws
    legend = drawn.get_legend().get_window_extent()
    assert legend.y1 < drawn.get_window_extent().y0  # it covers no line


def test_ablation_by_layer() -> None:
    curve, drawn = layer_ablation(case().seen, classes()), axis()
    draw_ablation(curve, drawn)
    points, (low, high), *_ = drawn.containers[0].lines
    np.testing.assert_allclose(points.get_ydata(), [point.accuracy for point in curve.points])
    np.testing.assert_allclose(low.get_ydata(), [point.low for point in curve.points])
    np.testing.assert_allclose(high.get_ydata(), [point.high for point in curve.points])
    assert set(lines(drawn)["nothing ablated"][1]) == {curve.baseline}


def test_overlap_says_its_numbers() -> None:
    units = [Unit("head", 0, head) for head in range(4)]
    matrix = overlap({"a": units[:2], "b": units[1:3], "c": units[3:]})
    drawn = axis()
    draw_overlap(matrix, drawn)
    assert [text.get_text() for text in drawn.texts][:3] == ["1.00", "0.33", "0.00"]


def rows(scores: dict[str, list[float]]) -> list[Row]:
    return [
        Row(method, seed, score, 1, 1.0, 1)
        for method, found in scores.items()
        for seed, score in enumerate(found)
    ]


def test_radar_of_methods() -> None:
    results = {
        task: rows({"lora": [base, base + 0.2], "default": [0.9]})
        for task, base in (("x", 0.1), ("y", 0.2), ("z", 0.3))
    }
    drawn = axis(polar=True)
    draw_radar(results, drawn, {"lora": "LoRA"})
    found = lines(drawn)
    np.testing.assert_allclose(found["LoRA"][1], [0.2, 0.3, 0.4, 0.2])  # closed
    assert set(found["default"][1]) == {0.9}
    with pytest.raises(ResiDualError, match="wanted a polar axis"):
        draw_radar(results, axis())
    with pytest.raises(ResiDualError, match="at least three tasks for a radar, got 1"):
        draw_radar({"x": results["x"]}, axis(polar=True))
    with pytest.raises(ResiDualError, match="'z' has others"):
        draw_radar({**results, "z": rows({"lora": [0.1]})}, axis(polar=True))


def test_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    values = torch.rand(4, 4).numpy()
    save_figure(tmp_path / "a.png", lambda drawn: drawn.plot([1, 2]) and None, size=(3, 2))
    assert Image.open(tmp_path / "a.png").size == (450, 300)
    save_figure(tmp_path / "a.png", lambda drawn: drawn.imshow(values), size=(3, 2))
    assert Image.open(tmp_path / "a.png").width < 400  # without the margin beside it

    def fails(drawn):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        save_figure(tmp_path / "b.png", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
