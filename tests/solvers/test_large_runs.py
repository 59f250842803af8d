"""docs/large_runs.md: its numbers are what the benchmark wrote, and its scripts run as shown."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from residual_peft.bases.accumulator import BasisAccumulator
from residual_peft.bases.basis import SpectralBasis
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.demo.tasks import world_images
from residual_peft.reporting import markdown_table
from residual_peft.solvers.store import write_coordinates
from residual_peft.solvers.store.writer import Writer
from tests.launch import ROOT, launch
from tests.models import Size, clip_model, pixels
from tests.training_case import Killed, adapted_classifier, images

PAGE = (ROOT / "docs" / "large_runs.md").read_text()
PLAN = json.loads((ROOT / "benchmarks" / "large_runs.json").read_text())
B16, L14 = PLAN["plans"].values()
SETS = list(B16)


def size(terabytes: float) -> str:
    if terabytes < 0.1:
        return f"{terabytes * 1000:.1f} GB" if terabytes < 0.01 else f"{terabytes * 1000:.0f} GB"
    return f"{terabytes * 1000:.0f} GB" if terabytes < 1 else f"{terabytes:.3g} TB"


def hours(value: float) -> str:
    if value < 1:
        return f"{value * 60:.2g} min"
    return f"{value:.3g} h" if value < 1000 else f"{value:,.0f} h"


def storage() -> str:
    rows = []
    for name, choice in PLAN["models"]["ViT-B/16"]["choices"].items():
        for dtype, count in choice["bytes"].items():
            whole = [size(B16[data]["choices"][name]["terabytes"][dtype]) for data in SETS]
            rows.append((name, f"{choice['coordinates']:,}", dtype, f"{count:,}", *whole))
    for dtype, count in PLAN["models"]["ViT-B/16"]["raw_bytes"].items():
        whole = [size(B16[data]["raw_terabytes"][dtype]) for data in SETS]
        rows.append(("what the units wrote, meanwhile", "–", dtype, f"{count:,}", *whole))
    return markdown_table(("kept", "coordinates", "dtype", "bytes per image", *SETS), rows)


def machines() -> str:
    rows = [
        (
            data,
            f"{plan['images']:,}",
            size(plan["read_terabytes"]),
            hours(plan["decoding_core_hours"]),
            hours(plan["gpu_hours"]),
            hours(plan["hours_on_one_machine"]),
            str(plan["machines_for_a_night"]),
            hours(plan["digest_hours"]["files"]),
            hours(plan["digest_hours"]["embedded"]),
        )
        for data, plan in B16.items()
    ]
    headers = ("images", "read", "decoding, cores", "encoder, GPUs", "one machine")
    headers += ("machines for a night", "digest, files", "digest, embedded")
    return markdown_table(("data", *headers), rows)


def fits() -> str:
    rows = [
        (
            data,
            name,
            size(choice["terabytes"]["bfloat16"]),
            f"{choice['fit']['seconds_to_read_once']:.0f} s",
            f"{choice['fit']['teraflop_per_evaluation']:,.0f} TFLOP",
            hours(choice["fit"]["hours"]),
        )
        for data in SETS
        for name, choice in B16[data]["choices"].items()
        if "fit" in choice
    ]
    headers = ("data", "coordinates", "bfloat16", "one reading", "one evaluation", "one fit")
    return markdown_table(headers, rows)


def class_heads() -> str:
    rows = []
    for model, plan in PLAN["plans"].items():
        for name, choice in plan["ImageNet-1k"]["choices"].items():
            head = choice["class_head"]
            sums = [head[f"{key}_gigabytes"] for key in ("statistics", "saved")]
            held, saved = (f"{n:.1f} GB" if n >= 1 else f"{n * 1e3:.0f} MB" for n in sums)
            files = [f"{head['head_megabytes'][kind]:.0f} MB" for kind in ("float32", "float16")]
            taken = head["seconds"].values()
            times = [f"{s / 60:.0f} min" if s >= 100 else f"{s:.2g} s" for s in taken]
            rows.append((model, name, held, saved, *files, *times))
    headers = ("sums, in memory", "saved", "head, float32", "float16", "summing", "decomposition")
    return markdown_table(("model", "coordinates", *headers, "second pass"), rows)


def known() -> str:
    measured, assumed = PLAN["measured"], PLAN["assumed"]
    kilobytes = assumed["kilobytes_per_image"]
    rows = [
        ("decoding, one core", f"{measured['decoding_images_per_second_per_core']} images/s",
         f"measured, JPEG files of 500 x 375 and {measured['decoding_kilobytes_per_file']} kB"),
        ("digest of a data set", f"{measured['digest_images_per_second_files']:,} images/s",
         "measured, files, their sizes in the cache of the system"),
        ("digest of embedded images", f"{measured['digest_images_per_second_embedded']:,} images/s",
         "measured, 100 kB each, memory-mapped"),
        ("summing the moments", f"{measured['reduction_seconds_two_processes']:.2g} s",
         "measured, two processes on one machine, gloo"),
        ("evaluations in a fit", f"{measured['evaluations_of_a_fit']}",
         "measured, bundled model, handwriting, a ridge of 1e-4"),
        ("GPU", f"{assumed['accelerator_peak_teraflops_bfloat16']} TFLOP/s",
         f"data sheet, {assumed['accelerator']}, bfloat16; not run"),
        ("share of it that a ViT reaches", f"{assumed['accelerator_share_of_peak']:.0%}",
         "assumed"),
        ("a machine", f"{assumed['accelerators_per_machine']} GPUs, "
         f"{assumed['cores_per_machine']} cores", "assumed"),
        ("its cores, float64", f"{assumed['cpu_teraflops_float64']} TFLOP/s", "assumed"),
        ("its disk", f"{assumed['disk_gigabytes_per_second']} GB/s", "assumed, one NVMe drive"),
        ("an image", ", ".join(f"{value} kB" for value in kilobytes.values()),
         f"assumed, {', '.join(kilobytes)}"),
        ("a night", f"{assumed['night_hours']} h", ""),
    ]  # fmt: skip
    return markdown_table(("what", "value", "where it comes from"), rows)


def sentences() -> list[str]:
    """What the text says in numbers."""
    small, large = PLAN["models"]["ViT-B/16"], PLAN["models"]["ViT-L/14"]
    error = PLAN["eigenvalue_relative_error"]
    whole, raw = large["choices"]["heads and MLPs"], large["raw_bytes"]["bfloat16"]
    gigabytes = L14["ImageNet-1k"]["choices"]["heads and MLPs"]["terabytes"]["bfloat16"]
    cores = [plan["ImageNet-1k"]["cores_that_keep_one_gpu_busy"] for plan in (B16, L14)]
    assert L14["LAION-2B"]["machines_for_a_night"] > B16["LAION-2B"]["machines_for_a_night"]
    return [
        f"{small['gigaflop']:.1f} GFLOP",
        f"{small['moments_megabytes']:.0f} MB in all",
        f"about twice {small['moments_megabytes']:.0f} MB",
        f"{error['10,000']:.1%} at 10,000 images, {error['1,000,000']:.2%} at 1,000,000",
        f"{cores[0]:.0f} cores keep one GPU busy with a ViT-B/16",
        f"{large['gigaflop']:.0f} GFLOP per image, {whole['coordinates']:,} coordinates "
        f"({whole['bytes']['bfloat16']:,} bytes in bfloat16, {raw:,} meanwhile), "
        f"{large['moments_megabytes']:.0f} MB of moments, {cores[1]:.0f} cores for one GPU",
        f"{size(gigabytes)} for ImageNet-1k, {hours(L14['LAION-2B']['gpu_hours'])} of GPUs "
        f"for LAION-2B",
    ]


def test_the_tables_are_what_the_benchmark_wrote() -> None:
    for table in (storage(), machines(), fits(), class_heads(), known()):
        assert table in PAGE


def test_no_number_of_the_text_is_without_a_source() -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", PAGE, flags=re.DOTALL)
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    text = " ".join(text.split())
    for sentence in sentences():
        assert sentence in text
        text = text.replace(sentence, "")
    unit = r"(?:[kMGT]B|h|hours|min|s|%|[GT]FLOPs?|images|cores|GPUs|machines)\b"
    assert len(text) > 3000
    assert re.findall(rf"\d[\d,.]*\s?{unit}", text) == []


def test_the_page_shows_the_script_and_lines_are_short() -> None:
    script = (ROOT / "examples" / "several_processes.py").read_text()
    assert max(len(line) for line in PAGE.splitlines() if not line.startswith("|")) <= 120
    shown = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(shown) == 2
    for line in filter(None, shown[0].splitlines()):
        assert line.strip() in script, line


def test_the_script_runs_in_two_processes_as_the_page_launches_it(tmp_path: Path) -> None:
    printed = launch("examples/several_processes.py", "--out", tmp_path / "shared")
    lines = printed.splitlines()
    assert lines[:2] == ["processes: 2", "400 images in 4 shards"]
    assert float(lines[2].split()[-1]) > 0.85
    assert len(lines) == 3
    assert len(list((tmp_path / "shared").glob("shard-*"))) == 4


def test_bases_from_a_stream_run_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stream of the bundled world's images in place of LAION, and one process."""
    clip, named = load_backbone(), "residual_peft.classifiers.backbones.load_backbone"
    stream = world_images(300).rename_column("image", "jpg").to_iterable_dataset(num_shards=2)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: stream)
    monkeypatch.setattr(named, lambda *_, **__: clip)
    monkeypatch.setattr("residual_peft.SpectralBasis.save_pretrained", lambda *_, **__: None)
    shown = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    names: dict[str, Any] = {}
    for line, here in ((", across_processes=True", ""), ("num_workers=12", "num_workers=0")):
        assert line in shown
        shown = shown.replace(line, here)
    exec(compile(shown, "large_runs.md", "exec"), names)
    basis = names["basis"]
    assert isinstance(basis, SpectralBasis)
    assert basis.num_samples == 300


def benchmark() -> Any:
    path = ROOT / "benchmarks" / "large_runs.py"
    spec = importlib.util.spec_from_file_location("large_runs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_arithmetic_is_that_of_real_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the tests' tiny model, where everything can be weighed."""
    tiny = Size()
    head_dim = tiny.width // tiny.heads
    model = benchmark().Model(
        tiny.layers, tiny.heads, head_dim, tiny.width, tiny.readout, patches=4, patch=tiny.patch
    )
    accumulator = BasisAccumulator(clip_model())
    accumulator.update(pixels(60))
    parts = [*accumulator.heads, accumulator.others]
    assert model.moment_numbers() == sum(part.mean.numel() + part.m2.numel() for part in parts)
    basis = SpectralBasis.from_accumulator(accumulator)
    assert model.coordinates("heads and MLPs") == sum(basis.component_counts)
    heads = basis.select("head").truncate(3)
    assert model.coordinates("heads", 3) == sum(heads.component_counts)
    classifier = adapted_classifier()
    data = images(classifier)

    def dying(*arguments: object) -> None:
        raise Killed

    monkeypatch.setattr(Writer, "_write", dying)
    with pytest.raises(Killed):
        write_coordinates(classifier.model, data, tmp_path, fit_basis=True, shard_size=100)
    (raw,) = tmp_path.glob("raw-*")
    held = sum(tensor.nbytes for tensor in load_file(raw).values())
    assert held == len(data) * model.raw_bytes(torch.float32)


def test_operations_of_a_forward_are_those_that_torch_counts() -> None:
    sizes = Size(width=32, heads=2, layers=2, readout=16, image=16, patch=8)
    tower = clip_model(sizes)
    for layer in tower.vision_model.encoder.layers:  # four times as wide, as CLIP's are
        layer.mlp.fc1 = torch.nn.Linear(32, 128)
        layer.mlp.fc2 = torch.nn.Linear(128, 32)
    tower.vision_model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower.get_image_features(pixels(1, sizes))
    model = benchmark().Model(2, 2, 16, 32, 16, patches=4, patch=8)
    assert model.flops == counter.get_total_flops()
