"""The explorer from the command line, and as a Space."""

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from residual_peft.app.exploring import explore
from residual_peft.errors import EXTRAS, ResiDualError, missing_extra

SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.mark.slow
def test_the_command_serves_the_page_until_it_is_interrupted(saved_adapter) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(ResiDualError, match=rf"port {port} of 127.0.0.1, which is taken"):
            explore(saved_adapter, port=port, browser=False)
    command = [sys.executable, "-m", "residual_peft.cli", "explore", str(saved_adapter)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        line = process.stdout.readline()
        assert line == f"The explorer is at http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60) as answer:
            page = answer.read().decode()
        assert "fonts.googleapis.com/css" not in page
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_space_makes_a_page_of_the_adapter_it_is_told(saved_adapter, monkeypatch) -> None:
    monkeypatch.setenv("ADAPTER", str(saved_adapter))
    demo = runpy.run_path(str(SPACE / "app.py"))["demo"]
    assert demo.title.endswith(f"{saved_adapter} sees")
    front = (SPACE / "README.md").read_text().split("---")[1]
    said = dict(re.findall(r"^(\w+): *(.+)$", front, re.MULTILINE))
    assert (said["sdk"], said["app_file"]) == ("gradio", "app.py")
    constraints = (SPACE.parents[1] / "constraints.txt").read_text()
    assert f"gradio=={said['sdk_version']}\n" in constraints
    assert "residual-peft[explorer]" in (SPACE / "requirements.txt").read_text()


def test_without_gradio_its_extra_is_named_and_all_is_not() -> None:
    error = missing_extra(ModuleNotFoundError("No module named 'gradio'", name="gradio.themes"))
    assert str(error).endswith("not installed: pip install 'residual-peft[explorer]'.")
    assert EXTRAS["gradio"] == "explorer"
