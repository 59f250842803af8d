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
