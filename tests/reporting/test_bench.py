"""Summaries of a bench: differences are scipy's, and tables say what the rows say."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy import stats

from residual_peft.experiments.bench.entries import Published
from residual_peft.experiments.bench.results import Result, latest, packed
from residual_peft.reporting.bench.forms import latex, markdown, write_summaries
from residual_peft.reporting.bench.tables import shifts, standing, tables, worst_groups
from residual_peft.reporting.html import number
from residual_peft.reporting.paired import difference

SCORES = {
    "zero-shot": (0.4, 0.45, 0.5),
    "logistic-embedding": (0.6, 0.75, 0.5),
    "ridge": (0.8, 0.7, 0.9),
}


def result(method: str, seed: int, accuracy: float, data: str = "a_b", **more) -> Result:
    hits = torch.arange(20) < round(20 * accuracy)
    return Result(
        "clip", data, "4-shot", method, seed, "", accuracy, accuracy, 0.1, 1234, 5000, 1.0, 0.5,
        10**8, {"train": 8, "test": 20}, "", "", ("x", "y"), (), "weights", packed(hits),
        versions={"torch": "2"}, machine="a machine", **more,
    )  # fmt: skip


@pytest.fixture
def results() -> list[Result]:
    return [
        result(method, seed, score - shift, data)
        for data, shift in (("a_b", 0.0), ("c", 0.05))
        for method, scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]


@pytest.fixture
def page(tmp_path) -> Callable[..., str]:
    def written(results, title="Title", published=None, name="summary.html") -> str:
        write_summaries(results, tmp_path, title, published)
        return (tmp_path / name).read_text()

    return written


def test_differences_are_paired(results) -> None:
    def of(method: str) -> list[Result]:
        return [one for one in results if one.method == method]

    found = difference(of("ridge"), reversed(of("zero-shot")))
    first, second = ([r.accuracy for r in of(name)] for name in ("ridge", "zero-shot"))
    expected = stats.ttest_rel(first, second)
    assert (found.mean, found.runs) == (pytest.approx(sum(first) / 6 - sum(second) / 6), 6)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.error == pytest.approx(found.mean / expected.statistic)
    # one run: by its images, of which 8 of 20 differ, all one way
    single = difference(of("ridge")[:1], of("zero-shot")[:1])
    assert single.error is None
    assert single.p == pytest.approx(2 * 0.5**8)
    assert difference(of("ridge"), of("ridge")).p == 1
    assert difference(of("ridge"), []) is None


def test_runs_that_do_not_differ_are_compared_by_all_their_images() -> None:
    """Two seeds, 8 of 20 images each all one way; a harmonic mean is of more than those images."""
    first, second = (
        [result(name, seed, score) for seed in (0, 1)] for name, score in (("a", 0.8), ("b", 0.4))
    )
    found = difference(first, second)
    assert (found.error, found.p) == (0, pytest.approx(2 * 0.5**16))
    first, second = (
        [replace(one, harmonic_mean=one.accuracy / 2) for one in side] for side in (first, second)
    )
    for count in (1, 2):
        found = difference(first[:count], second[:count])
        assert (found.mean, found.p, found.runs) == (pytest.approx(0.2), None, count)
        assert "p" not in found.text
    probes = [replace(one, method="logistic-embedding") for one in second[:1]]
    assert "| a | 40.0 |" in markdown([first[0], *probes], "Title")


def test_rows_of_other_images_or_entries_are_not_compared(results) -> None:
    """A share, a seed or a template changed, and one method of three was run again."""
    changed = [
        replace(one, registry="new", split="new", images={"test": 12}, right=packed(one.hits[:12]))
        for one in results
        if one.method == "ridge" and one.data == "c"
    ]
    mixed = [one for one in results if one not in changed] + changed
    old = [one for one in results if one.method == "zero-shot" and one.data == "c"]
    assert difference(changed, old) is None
    assert difference([replace(one, registry="") for one in changed], old) is None
    assert "| ridge | " in markdown(mixed, "Title")
    kept = latest(mixed)
    assert [one for one in kept if one.data == "c"] == changed
    assert [one for one in kept if one.data != "c"] == [one for one in results if one.data != "c"]


def test_tables_say_what_the_rows_say(results) -> None:
    text = markdown(results, "Title")
    assert "| ridge | 77.5 | +35.0 ± " in text
    mean, error = 0.8, torch.tensor([0.8, 0.7, 0.9]).std().item() / 3**0.5
    assert f"| ridge | {100 * mean:.1f} ± {100 * error:.1f}" in text
    order = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert order[1:4] == ["ridge", "logistic-embedding", "zero-shot"]  # the best first
    assert "18 runs, on a machine; torch 2." in text
    assert "forgotten" not in text
    halves = [replace(r, harmonic_mean=0.25, forgotten={"c": (0.5, 0.375)}) for r in results]
    assert "| ridge | 25.0 |" in markdown(halves, "Title")
    assert "| 4-shot | ridge | 50.0 | 37.5 | −12.5 | 6 |" in markdown(halves, "Title")


PUBLISHED = {
    "LoRA <r=16> & $q$": Published("clip", "a table", {"4-shot": {"a_b": 91.5, "c": 80.0}}),
    "LP++": Published("clip", "README", average={"4-shot": 77.0}, note="Other splits."),
    "of another": Published("vit", "README", average={"4-shot": 12.0}),
    "of 16 shots": Published("clip", "README", average={"16-shot": 13.0}),
}


def test_published_rows_stand_below_ours_and_in_no_test(results) -> None:
    found, plain = tables(results, PUBLISHED), tables(results)
    assert [table.title for table in found] == ["4-shot", "4-shot: clip"]
    assert found[0] == plain[0]  # the leaderboard, with all differences
    assert found[1].cells[:3] == plain[1].cells
    assert found[1].cells[3:] == (
        ("LoRA <r=16> & $q$ (published)", "91.5", "80.0", "85.8"),
        ("LP++ (published)", "–", "–", "77.0"),
    )
    assert [(b.name, b.published) for b in found[1].bars][:3] == [
        ("LoRA <r=16> & $q$ (published)", True), ("ridge", False), ("LP++ (published)", True),
    ]  # fmt: skip
    text = markdown(results, "Title", PUBLISHED)
    assert "- LP++: README. Other splits." in text
    assert "of another" not in text + latex(results, "Title", PUBLISHED)


def test_shifts_and_worst_groups_say_what_the_rows_say(results) -> None:
    assert not shifts(results).cells
    told = [
        replace(
            one,
            shifted={"jpeg 3": one.accuracy / 2} | ({"other": 0.25} if one.data == "c" else {}),
            worst_group="x, left" if one.seed else "y, left",
            worst_group_accuracy=one.accuracy / (one.seed + 1),
        )
        for one in results
        if one.method == "ridge"
    ]
    rest = [one for one in results if one.method != "ridge"]
    # ridge: .8 .7 .9 and .05 less on the other data set
    assert shifts([*rest, *told]).cells == (
        ("4-shot, ridge", "77.5", "38.8 (−38.8)", "25.0 (−50.0)"),
    )
    (first, second) = worst_groups([*rest, *told]).cells
    worst = torch.tensor([0.8, 0.35, 0.3])
    error = 100 * worst.std().item() / 3**0.5
    expected = f"{100 * worst.mean().item():.1f} ± {error:.1f}"
    assert first == ("4-shot, a_b, ridge", "80.0", expected, "x, left")
    assert second[0] == "4-shot, c, ridge"


def test_the_leaderboard_counts_who_is_behind(results, page) -> None:
    """On a_b ridge, probe, zero-shot; on c the latter two are level; ridge is alone in d."""
    level = [
        replace(one, accuracy=0.5) if one.data == "c" and one.method != "ridge" else one
        for one in results
    ]
    alone = [replace(one, data="d") for one in level if one.method == "ridge" and one.data == "c"]
    table = standing([*level, *alone])
    rows = {cells[0]: cells[1:4] for cells in table.cells}
    assert [cells[3].endswith(" (2 of 3 tasks)") for cells in table.cells] == [False, True, True]
    assert rows["ridge"] == ("100.0 %", "2 of 2", number(100 * (0.8 + 0.75 + 0.75) / 3, 1))
    assert rows["logistic-embedding"][:2] == (f"{100 * (0.5 + 0.25) / 2:.1f} %", "0 of 2")
    assert rows["zero-shot"][:2] == (f"{100 * (0 + 0.25) / 2:.1f} %", "0 of 2")
    assert [bar.name for bar in table.bars] == [*rows]
    assert "Ahead of: the share" in page(results, name="leaderboard.html")


def test_a_radar_goes_around_three_data_sets(results, page) -> None:
    """Its text is the page's, its ids are its own, and names of strangers are no mathematics."""
    third = [replace(one, data="d<1>") for one in results if one.data == "c"]
    more = {"LoRA <r=16> & $q$": Published("clip", "s", {"4-shot": {"a_b": 9, "c": 8, "d<1>": 7}})}
    both = [*results, *third, *(replace(one, model="vit") for one in [*results, *third])]
    html = page(both, "Title", more)
    assert page(results, "Title").count('class="radar"') == 0
    assert html.count('class="radar"') == 2
    for said in ("d&lt;1&gt;</text>", "LoRA &lt;r=16&gt; &amp; $q$ (published)</text>", "80 %"):
        assert said in html
    assert "http" not in html.replace("http-equiv", "")
    names = re.findall(r'\sid="([^"]+)"', html)
    assert len(names) == len(set(names))
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', html))
    assert used <= {*names}
    drawn = re.findall(r"(?:fill|stroke): (#\w+)", html)
    assert set(drawn) <= {"#ffffff"}  # the rest is the page's own, in the light and in the dark


def test_other_forms_are_escaped_and_whole(results, page, tmp_path) -> None:
    odd = [replace(one, data="<c&d>_1%") for one in results]
    tex, html = latex(odd, "50 % & <more>"), page(odd, "50 % & <more>")
    assert r"$<$c\&d$>$\_1\%" in tex
    assert latex(odd, "one\ntwo\r\nthree").startswith("% one two three\n\n% ")
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
    named = {"[1] a|b": Published("clip", "s", {"4-shot": {"<c&d>_1%": 9}})}
    # neither a column of its own nor an option of the end of the row above
    assert "\n{}[1] a|b (published)" in latex(odd, "T", named)
    assert "\n| [1] a\\|b (published) |" in markdown(odd, "T", named)
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert rows
    assert all(r"\pm" in row or "±" not in row for row in rows)
    assert "&lt;c&amp;d&gt;_1%" in html
    assert "<c&d>" not in html
    assert html.count('class="after"') == 3
    assert "http" not in html.replace("http-equiv", "")
    assert write_summaries(odd, tmp_path, "T") == [
        "summary.md",
        "summary.tex",
        "summary.html",
        "leaderboard.html",
    ]
    assert "<h1>T</h1>" in (tmp_path / "summary.html").read_text()


def test_what_is_forgotten_on_the_way_is_told_where_it_was_asked(results) -> None:
    """Means over seeds; LoRA and its column where it ran; the mean of memory where it was seen."""
    assert "less LoRA" not in markdown(results, "Title")
    curves = [{"0": (0.2, 0.6), "1": (0.8 + seed / 10, 0.4)} for seed in (0, 1)]
    found = [
        result(
            "gains-interpolated",
            seed,
            0.7,
            curve=curve,
            mean_memory=10**7,
            forgotten={"c": (0.6, 0.4)},
        )
        for seed, curve in enumerate(curves)
    ]
    said = markdown([*results, *found, result("lora", 0, 0.5), result("lora", 1, 0.7)], "Title")
    assert "| 4-shot, gains-interpolated, here | 20.0 | 85.0 |" in said
    assert "| 4-shot, gains-interpolated, other tasks | 60.0 | 40.0 |" in said
    assert "10.0 MB / 100.0 MB" in said
    assert "| – / 100.0 MB |" in said
    row = next(line for line in said.splitlines() if line.startswith("| gains-interpolated | 70.0"))
    assert "+10.0 ± 10.0 (p 0.500)" in row
    # a mean over one of two tasks is no rank: it stands below all that ran on both
    assert "| gains-interpolated | 70.0 (1 of 2 tasks) |" in row
    first = [line.split(" | ")[0] for line in said.splitlines() if line.startswith("| ")]
    assert first.index("| zero-shot") < first.index("| gains-interpolated")


def test_every_column_is_a_mean_over_tasks_of_which_one_has_more_runs() -> None:
    runs = [result("full", seed, 0.9) for seed in range(3)] + [result("full", 0, 0.3, "c")]
    runs = [replace(one, trained=100 if one.data == "c" else 300, bytes=2000) for one in runs]
    row = next(line for line in markdown(runs, "Title").splitlines() if line.startswith("| full"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "60.0"
    assert cells[-7] == "60.0"  # recall, which is the accuracy here
    assert cells[-5:-3] == ["200", "2.0 kB"]
