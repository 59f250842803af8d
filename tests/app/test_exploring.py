"""The explorer from the command line, and as a Space."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from residual_peft import fit
from residual_peft.errors import EXTRAS, ResiDualError, missing_extra
from tests.browser import browser  # noqa: F401  a fixture
from tests.commands import photos
from tests.launch import ENVIRONMENT
from tests.pairs import table

SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.mark.slow
def test_the_command_serves_the_page_until_it_is_interrupted(saved_adapter) -> None:
    from residual_peft.app.explorer import explore  # and with it Gradio

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


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the Space, started as there: with what its requirements name, and no more."""
    root = tmp_path_factory.mktemp("space")
    (root / "photos").mkdir()
    photos(root / "photos", "size", 60, seed=4)
    fit(root / "photos", method="ridge-heads").save(root / "my-adapter")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.only_required",
         str(SPACE / "requirements.txt"), str(SPACE / "app.py")],
        stdout=subprocess.PIPE, text=True, cwd=root,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1", "ADAPTER": "my-adapter",
             "GRADIO_SERVER_PORT": port},
    )  # fmt: skip
    try:
        hidden = process.stdout.readline().split()
        assert {"matplotlib", "onnxruntime", "pytest"} <= set(hidden)
        assert not {"torch", "datasets", "gradio"} & set(hidden)
        running = next(line for line in process.stdout if "Running on" in line)
        yield running.split()[-1]
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@table("width", [390, 1280])
def test_the_space_shows_a_class_head_on_a_phone_and_a_laptop(
    browser,  # noqa: F811
    space,
    shapes,
    tmp_path,
    width,
) -> None:
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.set_default_timeout(60_000)
    view.goto(space)
    view.get_by_role("heading", name="What my-adapter sees").wait_for()
    view.set_input_files("#image input[type=file]", shapes[0])
    view.locator("#why table").first.wait_for()
    for place in ("#before", "#after"):
        assert re.search(r"(large|small)[^%]*\d+%", view.inner_text(place))
    assert view.locator("#why tr").filter(has_text="layer").count() > 8
    assert "as fitted" in view.inner_text("#margin")
    before = view.inner_text("#margin")
    number = view.locator("#knob-0 input[type=number]")
    number.fill("-2")
    number.press("Enter")
    view.locator("#margin").get_by_text("with the sliders").wait_for()
    assert view.inner_text("#margin") != before
    view.get_by_role("tab", name="A folder").click()
    (tmp_path / "bad.png").write_bytes(b"")
    view.set_input_files("#files input[type=file]", [*shapes[:3], str(tmp_path / "bad.png")])
    said = view.locator("#table").get_by_text("not read: an empty file")
    said.locator("visible=true").first.wait_for()
    assert view.evaluate("document.documentElement.scrollWidth") == width
    view.close()


def test_the_space_says_to_the_hub_what_it_is() -> None:
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
