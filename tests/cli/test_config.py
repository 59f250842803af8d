"""`fit --config`: a file in place of options, and the one that repeats a run."""

from pathlib import Path

import pytest
import yaml

from tests.commands import photos, stop
from tests.pairs import table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("configured")
    (root / "photos").mkdir()
    photos(root / "photos", "size", 40, seed=5)
    return root


@pytest.mark.parametrize("method", ["ridge-heads", "gains"])
def test_the_file_of_a_run_repeats_it_to_the_byte(method, folder, tmp_path, monkeypatch) -> None:
    given = ["--units", "head", "--components", "8", "--set", "remainder=drop", "--seed", "3"]
    given += ["--template", "a {} object", "--method", method, "--balanced", "--no-report"]
    given += ["--keep-statistics-per-class"] if method == "ridge-heads" else []
    monkeypatch.chdir(folder)
    assert stop(monkeypatch, "fit", "--data", "photos", "--out", str(tmp_path / "a"), *given) == 0
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a" / "run" / "run.yaml"
    assert stop(monkeypatch, "fit", "--config", str(file), "--out", "b", "--no-report") == 0
    names = ["adapter_model.safetensors", "residual_classifier.safetensors"]
    names += ["adapter_config.json", "residual_classifier.json", "run/run.yaml"]
    names += ["run/statistics.safetensors"] if method == "ridge-heads" else []
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    # what is typed counts more than the file
    more = ["--out", "c", "--seed", "4", "--method", "ridge-embedding", "--no-report"]
    assert stop(monkeypatch, "fit", "--config", str(file), *more) == 0
    found = yaml.safe_load((tmp_path / "c" / "run" / "run.yaml").read_text())
    assert (found["seed"], found["method"], found["components"]) == (4, "ridge-embedding", 8)


@table(
    ("text", "message"),
    [
        ("metod: ridge", "'metod' is not an option that 'run.yaml' may have; did you mean 'method"),
        ("- data", "wanted options in 'run.yaml', a line each such as 'data: photos', got list."),
        ("data: [", "could not read 'run.yaml' as YAML (while parsing a flow node"),
        ("config: other.yaml", "'config' is not an option that 'run.yaml' may have"),
        ("data: {a: b}", "'run.yaml': wanted one value for data, got {'a': 'b'}."),
        ("data: photos\ncomponents: many", "wanted --components as a number or a share of"),
        ("data: photos\nset: granularity", "wanted --set NAME=VALUE, got 'granularity'."),
        ("data: photos\nset: grain=unit", "'grain' is not a setting of the adapter's config"),
        ("data: photos\nbatch_size: 0", "Invalid value for '--batch-size'"),
        ("seed: 1", "Missing option '--data'"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(text, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    assert stop(monkeypatch, "fit", "--config", "run.yaml", "--out", "a") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
