"""README and docs/ are followed word by word in an empty folder; their numbers were measured."""

import ast
import builtins
import json
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
from residual_peft.experiments import METHODS, Row
from residual_peft.hub.directories import DEMO_MODEL
from residual_peft.reporting import HEADERS, markdown_table, table_cells
from tests.commands import says
from tests.hub_client import hub  # noqa: F401  a fixture

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# the pages as they are read after README, in the folder that its blocks leave
PAGES = ("README", "commands", "peft", "coordinates", "analysis", "sharing", "results", "bench")
# pages whose blocks need more than that folder -> where they are run
ELSEWHERE = {"large_runs": "solvers/test_large_runs.py", "towers": "towers/test_towers.py"}


def page(name: str) -> str:
    return (README if name == "README" else ROOT / "docs" / f"{name}.md").read_text()


def blocks_of(text: str) -> list[tuple[str, str]]:
    return re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)


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
    """Links and their anchors lead somewhere; a number of README's summary has its page."""
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
    (summary,) = re.findall(r"\n\n(- \*\*Ridge.*?)\n\n", text, re.DOTALL)
    assert summary.count("\n- ") <= 5
    numbers = [set(re.findall(r"[\d.,]*\d", x)) for x in (summary, page("results"))]
    assert numbers[0] <= numbers[1], numbers[0] - numbers[1]


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


def results(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


def test_what_is_said_of_heads_gains_and_words_was_measured() -> None:
    text = " ".join(page("analysis").split())
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


def test_the_epoch_is_chosen_by_what_the_benchmark_found_best() -> None:
    found = results("choosing")["mean"]
    right = f"{found['loss']:.2f} of other images right instead of {found['accuracy']:.2f}"
    assert right in " ".join(page("peft").split())
    assert found["loss"] >= found["accuracy, then loss"]


def test_the_table_of_speed_is_what_the_benchmark_wrote() -> None:
    found = results("speed")
    headers = ("what", "against", "asked", "reached", "holds")
    assert markdown_table(headers, found["table"]) in page("results")
    assert found["machine"]["processor"].split(",")[0] in page("results")
    assert len(found["table"]) == len(found["rows"])
    seconds, text = results("first_line")["seconds"], " ".join(page("commands").split())
    base = seconds.pop("importing torch, transformers, peft")
    first = [row["first"] for row in seconds.values()]
    said = f"after {min(first):.2f} to {max(first):.2f} s, where importing torch, transformers and"
    assert f"{said} PEFT takes {base['first']:.1f} s" in text
    assert f"complete after {seconds['look']['end']:.1f} s, a whole `fit` after" in text
    assert f"`fit` after {seconds['fit']['end']:.0f} s." in text


HEADS_ROWS = (
    "gains",
    "class means, embedding",
    "Tip-Adapter-F, embedding",
    "ProKeR, embedding",
    "GDA, embedding",
    "logistic regression, embedding",
    "ridge, embedding",
    "discriminant analysis, embedding",
    "ridge, heads",
    "ridge, heads and MLPs",
)
SHOTS = ("1", "4", "8", "16", "all")


def heads_table() -> str:
    """README's first table, from the benchmark's output."""
    found = results("heads")["handwriting"]
    rows = found["images_per_class"]
    best = {shots: max(rows[shots][name]["accuracy"] for name in HEADS_ROWS) for shots in SHOTS}
    lines = ["| method | " + " | ".join(SHOTS) + " |", "|---|" + "---:|" * len(SHOTS)]
    lines.append(f"| zero-shot | {found['zero_shot']:.3f} " + "| " * (len(SHOTS) - 1) + "|")
    for name in HEADS_ROWS:
        cells = [rows[shots][name]["accuracy"] for shots in SHOTS]
        shown = [
            f"**{cell:.3f}**" if cell == best[shots] else f"{cell:.3f}"
            for cell, shots in zip(cells, SHOTS, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lora = results("heads")["lora"]["images_per_class"]
    for place, rank in enumerate((8, 16)):
        name = f"LoRA r={rank}"
        cells = [f"{lora[s][name]['accuracy']:.3f}" if s in lora else "" for s in SHOTS]
        lines.insert(4 + place, f"| {name} on q, v | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_tables_of_methods_are_what_the_benchmarks_wrote() -> None:
    """README's first, what `fit` shows above it, and the demo's."""
    tables = [text for text in page("README").split("\n\n") if text.startswith("| method |")]
    assert tables == [heads_table()]
    *fits, chosen = (ROOT / "benchmarks" / "compare_digits.txt").read_text().splitlines()
    assert chosen.startswith("(* chosen by")
    assert "```text\n" + "\n".join(fits) + "\n```" in page("README")
    cells = table_cells(
        [Row(**row) for row in results("handwriting")["rows"]],
        {name: method.label for name, method in METHODS.items()},
    )
    assert markdown_table(HEADERS, cells) in page("results")


def test_what_is_said_of_export_was_measured() -> None:
    found, text = results("export_onnx"), page("commands")
    lines = [
        "| model | file | largest difference | 1 image | 8 images |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in found["rows"].items():
        speeds = [f"{row[f'batch_{count}']['onnxruntime_to_torch']:.2f}" for count in (1, 8)]
        cells = [name, f"{row['megabytes']:.1f} MB", f"{row['probability_difference']:.1e}"]
        lines.append("| " + " | ".join([*cells, *speeds]) + " |")
    assert "\n".join(lines) in text
    sizes = {name: item["megabytes"] for name, item in found["installed"].items()}
    text = " ".join(text.split())
    assert f"{sizes['to answer with onnxruntime']:,} MB in place of" in text
    assert f"in place of {sizes['to answer with torch']:,} MB" in text
    assert f"the extra is {sizes['to export, on top']:,} MB" in text
