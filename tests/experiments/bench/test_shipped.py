"""The registries that come with the package, on miniature copies of the Hub's data sets."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import CLIPConfig, CLIPModel

from residual_peft.app.benching import run_bench
from residual_peft.experiments.bench.entries import DataEntry
from residual_peft.experiments.bench.images import load_images, load_shifted
from residual_peft.experiments.bench.plan import plan
from residual_peft.experiments.bench.registry import SHIPPED, read_registry
from residual_peft.experiments.bench.run import runs_of
from tests.experiments.bench.miniatures import COPIES, count_of, write_copy, write_frames
from tests.hub_client import hub  # noqa: F401  a fixture
from tests.hub_store import Hub, Repository
from tests.models import randomize
from tests.pairs import table
from tests.training_case import save_clip

WIDTHS = {"clip-b16": 512, "openclip-b16": 512, "clip-b32": 512, "clip-l14": 768,
          "openclip-l14": 768, "blip-l": 256, "vit-l16": 1024, "dinov2-l14": 1024}  # fmt: skip


def test_registries_are_whole() -> None:
    """K from layers, heads and widths, as the paper's table counts; every source has a copy."""
    registries = {name: read_registry(name) for name in SHIPPED}
    sizes = {
        name: (len(r.models), len(r.tasks), len(r.published)) for name, r in registries.items()
    }
    assert sizes == {"paper": (7, 10, 0), "fusionbench": (3, 8, 8), "coop": (1, 11, 18)}
    shapes = {12: (12, 64), 24: (16, 64)}
    for registry in registries.values():
        for name, entry in registry.models.items():
            layers = 12 if name.endswith(("b16", "b32")) else 24
            heads, width = shapes[layers]
            assert entry.width == WIDTHS[name]
            # a head has its directions and its bias's, an MLP as many as the readout
            assert entry.coordinates == layers * (heads * (width + 1) + entry.width)
        planned = [each for each in plan(registry) if each.runs]
        assert len(planned) == len(registry.models) * len(registry.tasks)
        assert sum(each.runs for each in planned) == len(runs_of(registry))
        assert {entry.seed for entry in registry.data.values()} == {42}
        assert {entry.source for entry in registry.data.values()} <= {*COPIES, "ucf101"}
    means = {
        name: sum(row.accuracy["full"].values()) / 8
        for name, row in registries["fusionbench"].published.items()
    }
    assert means["LoRA r=16 on q and v, B/16"] == pytest.approx(84.95)
    assert means["full fine-tuning, B/16"] == pytest.approx(92.4, abs=0.05)


def check(name: str, entry: DataEntry, as_served: DataEntry | None = None) -> None:
    """The entry loads, and has as many images as its shares say of the copy."""
    images = load_images(as_served or entry)
    counts = {split: len(rows) for split, rows in images.splits.items()}
    digests = [digest for split in counts for digest in images.digests[split]]
    assert len(set(digests)) == sum(counts.values()), name
    if entry.source == "ucf101":
        assert counts == {"train": 32, "validation": 8, "test": 16}
        return
    copy = COPIES[entry.source]
    assert images.class_names == (
        entry.class_names or tuple(f"thing_{number}" for number in range(copy.classes))
    ), name
    used = entry.splits or {split: split for split in copy.splits}
    there = {split: count_of(copy, own) for split, own in used.items()}
    assert sum(counts.values()) == sum(there.values()), name
    there = {"train": sum(there.values())} if entry.resplit else there
    for split in ("validation", "test"):
        cut = there["train"] * getattr(entry, split)
        expected = there.get(split, cut)
        assert math.isclose(counts.get(split, 0), expected, abs_tol=copy.classes / 2), (name, split)


def local(folder: Path, entry: DataEntry) -> DataEntry:
    """The entry, its source a folder."""
    if not (place := folder / entry.source.replace("/", "-")).exists():
        write_copy(place, COPIES[entry.source])
    return replace(entry, source=str(place))


@table("name", [*SHIPPED])
def test_every_entry_loads_from_its_copy(name: str, tmp_path: Path, monkeypatch) -> None:
    registry = read_registry(name)
    write_frames(tmp_path / "ucf101")
    monkeypatch.chdir(tmp_path)
    for data in registry.tasks:
        entry = registry.data[data]
        here = entry if entry.source == "ucf101" else local(tmp_path, entry)
        check(data, entry, here)
        images = load_images(here)
        for other in entry.shifted:
            shifted = load_shifted(local(tmp_path, registry.data[other]), images)
            assert len(shifted) == count_of(COPIES[entry.source], "contrast")


@pytest.fixture
def served(hub, tmp_path: Path, monkeypatch) -> Hub:  # noqa: F811
    """A Hub with a copy of every data set, and UCF101's frames in the current folder."""
    for source, copy in COPIES.items():
        write_copy(tmp_path / source, copy)
        serve(hub, f"datasets/{source}", tmp_path / source)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    write_frames(tmp_path / "cwd" / "ucf101")
    return hub


def serve(hub: Hub, name: str, folder: Path) -> None:  # noqa: F811
    """The files of a folder as a repository."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    tree = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    hub.repositories[name] = Repository()
    hub.repositories[name].commit("main", tree, "a copy")


def tiny_clip(folder: Path) -> None:
    """With room for long prompts: its tokens are single characters."""
    save_clip(folder)
    config = CLIPConfig.from_pretrained(folder)
    config.text_config.max_position_embeddings = 200
    randomize(CLIPModel(config), 0).save_pretrained(folder)


@pytest.mark.slow
def test_every_entry_loads_from_the_hub(served: Hub) -> None:
    """By its own id, with the clients that are used there; nothing is changed but the address."""
    seen = set()
    for registry in map(read_registry, SHIPPED):
        for name, entry in registry.data.items():
            if name not in registry.aside and repr(entry) not in seen:
                seen.add(repr(entry))
                check(name, entry)
    asked = {source for source in COPIES for _, path, _ in served.requests if source in path}
    assert asked == {*COPIES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "protocols"),
    [("fusionbench", ["full-corrupted", "full"]), ("coop", ["1-shot", "16-shot", "base-to-novel"])],
)
def test_a_registry_runs_to_its_end(
    name: str, protocols: list[str], served: Hub, tmp_path: Path
) -> None:
    """All of it but the models' size and most methods: every data set, by name from the Hub."""
    tiny_clip(tmp_path / "tiny")
    serve(served, "openai/clip-vit-base-patch16", tmp_path / "tiny")
    registry = read_registry(name).only(["clip-b16"], None, ["zero-shot", "ridge"], protocols)
    said: list[str] = []
    results, summaries = run_bench(registry, tmp_path / "out", say=said.append)
    assert not [line for line in said if "left out" in line]
    assert len(results) == len(runs_of(registry))
    assert {result.data for result in results} == {*registry.tasks}
    for result in results:
        entry, protocol = registry.data[result.data], registry.protocols[result.protocol]
        assert result.templates == entry.templates
        halved = protocol.kind == "base-to-novel"
        worse = [f"{name} {level}" for name in protocol.corruptions for level in (3,)]
        assert set(result.shifted) == (set() if halved else {*worse, *entry.shifted})
        assert (result.harmonic_mean is not None) == halved
    assert len(summaries) >= 3
