"""Two processes, and three of which one has no data, give what one gives; all fail if one does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from residual_peft.bases.processes import Processes, _reducing_device
from tests import several_processes
from tests.launch import launch
from tests.models import Size
from tests.pairs import table


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, threads = tmp_path_factory.mktemp("one"), torch.get_num_threads()
    torch.set_num_threads(1)  # as `launch` does: products round otherwise with more
    torch.save(several_processes.bases(1, 0), out / "bases0.pt")
    several_processes.stores(out, across_processes=False)
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module", params=[2, 3])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(f"processes{request.param}")
    launch("-m", "tests.several_processes", out, processes=request.param)
    assert len(list(out.glob("bases*.pt"))) == request.param
    return out


def of_each(folder: Path, name: str) -> list[Any]:
    """What each process wrote."""
    if name.endswith(".pt"):
        return [torch.load(path) for path in sorted(folder.glob(name))]
    return [json.loads(path.read_text()) for path in sorted(folder.glob(name))]


def test_the_bases_are_those_of_one_process(one: Path, many: Path) -> None:
    (expected,), (found, *_) = of_each(one, "bases*.pt"), of_each(many, "bases*.pt")
    assert found["samples"] == expected["samples"] == [61, 61, 61]
    for mean, other in zip(found["means"], expected["means"], strict=True):
        torch.testing.assert_close(mean, other, rtol=1e-12, atol=1e-13)
    # a mean of 1e7 leaves float64 nine digits for a spread of 1
    torch.testing.assert_close(found["covariance"], expected["covariance"], rtol=1e-8, atol=1e-8)
    count = 0
    for values, others, rows, other_rows in zip(
        *(side[key] for key in ("eigenvalues", "components") for side in (found, expected)),
        strict=True,
    ):
        assert len(values) == len(others)
        clear = others > 1e-5 * others[0]  # a covariance squares the spread: fewer digits below
        torch.testing.assert_close(values[clear], others[clear], rtol=1e-10, atol=0.0)
        torch.testing.assert_close(values, others, rtol=0.0, atol=1e-12 * float(others[0]))
        cosines = (rows[clear] * other_rows[clear]).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-9, atol=0.0)
        count += int(clear.sum())
    assert count > 100


def test_each_process_has_the_same_bits(many: Path) -> None:
    first, *rest = of_each(many, "bases*.pt")
    for other in rest:
        for key in ("means", "components", "eigenvalues"):
            assert all(map(torch.equal, first[key], other[key])), key
        assert torch.equal(first["covariance"], other["covariance"])
        assert len(first["adapter"]) > 1
        for name, tensor in first["adapter"].items():
            assert torch.equal(tensor, other["adapter"][name]), name


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", several_processes.STORES)
def test_the_coordinates_are_those_of_one_process(one: Path, many: Path, name: str) -> None:
    expected, found = files(one / name), files(many / name)
    assert found.keys() == expected.keys()
    if not several_processes.STORES[name]["fit_basis"]:
        assert found == expected
        return
    # the basis is the same to rounding, and so is what follows from it
    for path in (path for path in expected if path.endswith(".safetensors")):
        mine, theirs = load_file(one / name / path), load_file(many / name / path)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            tolerance = 1e-10 if tensor.dtype == torch.float64 else 1e-5
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-5, atol=tolerance)
            if key in ("readout", "labels", "ids"):
                assert torch.equal(theirs[key], tensor)


HEX = "[0-9a-f]{12}"
MESSAGES = {
    "weights": rf"wanted the same weights in every process, got CLIPModel {HEX} in process 0 and "
    rf"CLIPModel {HEX} in process 1: load the same model in the same precision, and ask for the "
    "same units everywhere",
    "units": "wanted the same units in every process, got embed, head, mlp, output in process 0 "
    "and embed, head, mlp in process 1: load",
    "no images": r"wanted images, but none of the \d processes gave one: give each its own share",
    "one image": "too few images: a basis needs at least 2, got 1",
    "weights, stream": rf"wanted the same weights in every process, got {HEX} in process 0 and "
    rf"{HEX} in process 1: load the same model in the same precision, and adapt the same Linears",
    "weights, store": rf"wanted the same weights in every process, got {HEX} in process 0 and "
    rf"{HEX} in process 1: give each the same model, adapter, images and options",
    "options, store": "wanted the same shard_size in every process, got 10 in process 0 and 11 in",
}
OF_ONE = {  # what the process at fault says, and what the others say
    "not finite": ("ResiDualError: .*(NaN|finite)", "ResiDualError: process 1 of {} gave up: .*"),
    "bug": ("KeyError: 'a bug'", r"ResiDualError: process 1 of {} gave up: KeyError\('a bug'\)"),
    "image, store": (
        "ResiDualError: image 3 cannot be read",
        "ResiDualError: process 1 of {} gave up: image 3 cannot be read",
    ),
}


def test_what_does_not_fit_is_refused_in_every_process(many: Path) -> None:
    said = of_each(many, "messages*.json")
    assert said[0].keys() == {*MESSAGES, *OF_ONE, "folder, store"}
    for name, message in MESSAGES.items():
        assert len({process[name] for process in said}) == 1
        assert_matches(f"ResiDualError: {message}", said[0][name])
    for rank, process in enumerate(said):
        for name, (own, others) in OF_ONE.items():
            assert_matches(own if rank == 1 else others.format(len(said)), process[name])
        prefix = "" if rank else f"process 1 of {len(said)} gave up: "
        assert_matches(
            f"ResiDualError: {prefix}process 0 has written '.*folder{rank or 1}/manifest.json', "
            "which is not to be seen from here: name a directory that all processes share",
            process["folder, store"],
        )
    assert not (many / "other").exists()


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(AssertionError, match=f"^{pattern}"):
        raise AssertionError(text)


def test_what_is_sent_does_not_grow_with_images_or_processes(many: Path) -> None:
    size = Size()
    head, width = size.width // size.heads + 1, size.readout
    numbers = size.layers * (1 + size.heads * head * (head + 1))  # count, means, second moments
    others = size.layers + 2  # MLPs, embed, output
    numbers += 1 + others * width * (width + 1)
    for sent in of_each(many, "wire*.json"):
        assert sent["summed"] == 8 * numbers
        assert 0 < sent["largest"] < 500


def test_alone_nothing_is_waited_for() -> None:
    alone = Processes()
    assert alone.gathered(3) == [3]
    alone.check_same({"units": "head"}, "never.")
    with alone.in_step():
        pass
    with pytest.raises(KeyError), alone.in_step():
        raise KeyError("as it is")


@table(
    ("backend", "device"),
    [
        ("cpu:gloo,cuda:gloo", "cpu"),
        ("cuda:nccl,cpu:gloo", "cpu"),
        ("cuda:nccl", "cuda:1"),
    ],
)
def test_sums_run_where_the_backend_does(
    backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda: backend)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    assert _reducing_device() == torch.device(device)
