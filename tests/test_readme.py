"""README's first Python example runs as it stands."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
    saved = names["model"].state_dict()
    assert any("gains" in name and torch.isfinite(value).all() for name, value in saved.items())
