"""How far a pass has come: a bar on a terminal, in a log a line per stage."""

from residual_peft.data.progress import Bar, with_progress


def test_a_log_has_a_line_per_stage(monkeypatch, capsys) -> None:
    batches = [{"pixel_values": [0] * 4}, {"pixel_values": [0] * 3}]
    assert list(with_progress(batches, "Reading", True)) == batches
    assert capsys.readouterr().err.count("\r") > 1
    monkeypatch.setattr(Bar, "in_a_log", True)
    assert list(with_progress(batches, "Reading", True)) == batches
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Reading: 7 images in ")
    assert line.endswith(" a second")
    assert list(with_progress(batches, "Reading", False)) == batches
    assert capsys.readouterr().err == ""
    with Bar(desc="Fitting", unit="step", total=3) as bar:
        bar.update()
    assert capsys.readouterr().err.startswith("Fitting: 1 step in ")
