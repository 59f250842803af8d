"""README and docs/ are followed word by word in an empty folder, and lead where they say."""

import ast
import builtins
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, CLIPModel
from transformers.utils import logging as transformers_logging

from residual_peft import cli
from residual_peft.demo.tasks import handwriting
from residual_peft.hub.directories import DEMO_MODEL
from tests.commands import says
from tests.hub_client import hub  # noqa: F401  a fixture
from tests.pages import ELSEWHERE, PAGES, README, ROOT, blocks_of, page

BLOCKS = {name: blocks_of(page(name)) for name in PAGES}
EXAMPLES = [text for blocks in BLOCKS.values() for kind, text in blocks if kind == "python"]
# what makes the environment that this runs in, what asks for a password, what goes on until stopped
BEFORE = ("make demo ", "pip install ", "hf auth login", "residual-peft explore ")
# no network here: the bundled model in place of one on the Hub
ON_THE_HUB = {"openai/clip-vit-base-patch16": DEMO_MODEL}


def run(example: str) -> dict:
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    return names


def command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of a shell block, by the console script's own function."""
    for name, ours in ON_THE_HUB.items():
        line = line.replace(name, ours)
    words = shlex.split(line, comments=True)
    assert words[0] == "residual-peft", line
    monkeypatch.setattr("sys.argv", words)
    # the program quietens what a user's own Python should still say
    verbosity = transformers_logging.get_verbosity()
    with warnings.catch_warnings():
        try:
            cli.main()
        except SystemExit as done:
            if done.code:
                pytest.fail(f"{line} ended with {done.code}")
        finally:
            transformers_logging.set_verbosity(verbosity)
            transformers_logging.enable_progress_bar()


def photos(folder: Path, names: tuple[str, ...] = ("zero", "one", "two"), count: int = 30) -> None:
    """What a reader has: a folder of class folders, and a photo."""
    digits = handwriting()["train"]
    labels = digits["label"]
    for number, name in enumerate(names):
        (folder / "photos" / name).mkdir(parents=True)
        for row in [i for i, label in enumerate(labels) if label == number][:count]:
            digits[row]["image"].save(folder / "photos" / name / f"{row}.png")
    digits[0]["image"].save(folder / "photo.png")


@pytest.mark.slow
def test_all_blocks_run_in_order(hub, tmp_path, monkeypatch, capfd):  # noqa: F811
    """Each Python block by itself, as a script of its own would; they share the folder alone."""
    folder = tmp_path / "reader"
    folder.mkdir()
    photos(folder)
    monkeypatch.chdir(folder)
    for name, blocks in BLOCKS.items():
        for kind, text in blocks:
            assert kind in ("python", "sh", "text"), text
            if kind == "python":
                run(text)
            if kind != "sh":
                continue
            for line in text.strip().splitlines():
                if not line.startswith(BEFORE):
                    command(line, monkeypatch)
        if name == "README":
            made = {path.name for path in folder.iterdir()}
            assert {"my-adapter", "peft-adapter", "trained-adapter", "study"} <= made
            (folder / "page.html").unlink()  # docs/commands.md writes it again
    made = {path.name for path in folder.iterdir()}
    assert {"my-adapter.onnx", "coordinates", "my-clip", "page.html"} <= made
    assert (folder / "my-adapter" / "report.html").is_file()
    assert "me/my-adapter" in hub.repositories


def test_what_the_first_commands_say(tmp_path: Path, monkeypatch, capsys) -> None:
    """The session at the top, line by line."""
    photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    (session,) = [text for _, text in BLOCKS["README"] if text.startswith("$ residual")]
    told = re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]
    assert [part.split()[1] for part in told] == ["look", "fit", "predict", "report"]
    for part in told:
        typed, *shown = part.splitlines()
        command(typed, monkeypatch)
        says(shown, capsys.readouterr().out)
    assert "</html>" in (tmp_path / "page.html").read_text()


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_is_short_and_leads_to_all_pages() -> None:
    """Links and their anchors lead somewhere, and blocks of all pages are run."""
    text = page("README")
    assert len(text.splitlines()) <= 300
    assert len(text.split()) <= 2600
    files = [README, ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in files:
        said = path.read_text()
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", said):
            target, _, anchor = link.partition("#")
            there = (path.parent / target) if target else path
            assert there.exists(), (path, link)
            assert not anchor or anchor in anchors(there.read_text()), (path, link)
        if path.parent.name == "docs":
            assert f"(docs/{path.name})" in text
            run_here = path.stem in PAGES or not blocks_of(said)
            assert run_here or path.name in (ROOT / "tests" / ELSEWHERE[path.stem]).read_text()
        if path.stem in (*PAGES, *ELSEWHERE):
            assert [x for x in said.splitlines() if len(x) > 130 and x[0] != "|"] == []


def test_the_blocks_need_no_names_from_elsewhere() -> None:
    """What a block uses it imports or makes: a reader may begin with any."""
    for text in EXAMPLES:
        tree = ast.parse(text)
        made = set(dir(builtins))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                made |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                made.add(node.id)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert used <= made, text


def test_the_stream_example_leaves_a_plain_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(next(text for text in EXAMPLES if 'mode="stream"' in text))
    loaded = AutoModel.from_pretrained("my-clip")
    assert type(loaded) is CLIPModel
    for name, value in names["plain"].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_first_example_runs_and_has_nothing_to_warn_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = run(next(text for text in EXAMPLES if "# works at once" in text))
    # PEFT 0.21 asks transformers for a name that transformers 5.23 will drop, for every method
    said = [str(w.message) for w in caught if "is_gradient_checkpointing" not in str(w.message)]
    assert said == []
    assert (tmp_path / "peft-adapter" / "adapter_model.safetensors").is_file()
    saved = names["model"].state_dict()
    assert any("gains" in name and torch.isfinite(value).all() for name, value in saved.items())
