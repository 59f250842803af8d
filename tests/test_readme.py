"""README's Python examples run as they stand, and its table is what the benchmark wrote."""

import json
import re
from pathlib import Path

import torch
from transformers import AutoModel, CLIPModel

from residual_peft.experiments import METHODS, Row
from residual_peft.reporting import HEADERS, markdown_table, table_cells

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def run(example: str) -> dict:
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    return names


def test_the_table_is_what_the_benchmark_wrote() -> None:
    results = json.loads((README.parent / "benchmarks" / "handwriting.json").read_text())
    cells = table_cells(
        [Row(**row) for row in results["rows"]],
        {name: method.label for name, method in METHODS.items()},
    )
    assert markdown_table(HEADERS, cells) in README.read_text()


def test_the_stream_example_leaves_a_plain_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(EXAMPLES[1])
    loaded = AutoModel.from_pretrained("my-clip")
    assert type(loaded) is CLIPModel
    for name, value in names["plain"].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(EXAMPLES[0])
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
    saved = names["model"].state_dict()
    assert any("gains" in name and torch.isfinite(value).all() for name, value in saved.items())


def results(name: str) -> dict:
    return json.loads((README.parent / "benchmarks" / f"{name}.json").read_text())


def test_what_is_said_of_heads_gains_and_words_was_measured() -> None:
    text = " ".join(README.read_text().split())
    mean = results("selection")["summary"]["mean"]
    left = [f"{mean[letter]['share_of_H']['0.1']:.0%}".replace("%", " %") for letter in "SR"]
    assert (
        f"{left[0]} of the accuracy of all heads is left; a random tenth leaves {left[1]}" in text
    )
    given = f"{mean['U|T']['share_of_H']['0.1']:.0%}".replace("%", " %")
    assert f"without labels, it is {given}" in text
    assert f"on {len(mean['U']['does_not_hold'])} of 30 counts" in text
    drops = [
        drop
        for task in results("selection")["tasks"].values()
        for ablation in ("zero", "mean")
        for drop in task[ablation]["largest drop by one head"].values()
    ]
    assert f"no single head is needed: the best cost {100 * max(drops):.0f} points" in text
    gains = results("gain_sense")["summary"]
    fixed = gains["fixed_ridge"]
    assert len(fixed["own_attribute_correlates_most"]) == 8
    assert "letter" not in fixed["own_attribute_correlates_most"]
    own = fixed["own_correlation"].values()
    assert f"Spearman {min(own):.2f} to {max(own):.2f}" in text
    assert len(gains["chosen_ridge"]["own_attribute_correlates_most"]) == 5
    hits = results("words")["dictionaries"]["centred"]["somp_hits"]["by_the_first_component"]
    hit = hits["share_from_0.3"]
    share, chance = hit["hit_rate"], hit["dealt_at_random"]
    assert f"in {100 * share:.0f} % of the cases, by chance {100 * chance:.0f} %" in text


def test_the_table_of_speed_is_what_the_benchmark_wrote() -> None:
    found = results("speed")
    headers = ("what", "against", "asked", "reached", "holds")
    text = README.read_text()
    assert markdown_table(headers, found["table"]) in text
    assert found["machine"]["processor"].split(",")[0] in text
    assert len(found["table"]) == len(found["rows"])
