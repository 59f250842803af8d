"""A machine and its packages in words."""

import platform
from importlib.metadata import version
from pathlib import Path

from residual_peft.hub.machine import processor, versions


def test_versions_are_those_installed_and_a_processor_has_a_name(monkeypatch) -> None:
    found = versions(["torch", "no-such-package"])
    assert found == {
        "python": platform.python_version(),
        "torch": version("torch"),
        "no-such-package": "not installed",
    }
    text = "processor\t: 0\nmodel name\t: A maker's 7: one\nmodel name\t: other\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert processor() == "A maker's 7: one"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    assert processor() == (platform.processor() or platform.machine())
