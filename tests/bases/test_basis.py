import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BatchFeature

from residual_peft.bases.accumulator import BasisAccumulator
from residual_peft.bases.basis import SpectralBasis
from residual_peft.bases.spectra import UnitBasis, spectrum
from residual_peft.errors import ResiDualError
from residual_peft.hub.files import read_tensors, write_tensors
from residual_peft.towers.registry import find_tower
from residual_peft.towers.units import Unit
from tests.models import ALL, EVERY, SIZES, Size, clip_model, pixels
from tests.pairs import table
from tests.slow import slow_contributions, slow_pca

KINDS = ("embed", "head", "mlp", "output")
TENSORS, METADATA = "residual_basis.safetensors", "residual_basis.json"


def assert_same(found: UnitBasis, expected: UnitBasis, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found.mean, expected.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        found.eigenvalues, expected.eigenvalues, rtol=tolerance, atol=tolerance * 1e-3
    )
    torch.testing.assert_close(
        found.components, expected.components, rtol=1e-5, atol=tolerance * 1e2
    )


def assert_pca(found: UnitBasis, samples: Tensor) -> None:
    """Compare with one full SVD; directions up to sign, where their eigenvalues stand apart."""
    mean, directions, eigenvalues = slow_pca(samples)
    count = len(found.eigenvalues)
    torch.testing.assert_close(found.mean, mean, rtol=1e-10, atol=1e-11)
    # a covariance squares the spread: below 1e-5 of the largest, fewer digits are left
    clear = int((eigenvalues > 1e-5 * eigenvalues[0]).sum())
    assert count >= clear
    assert eigenvalues[count:].sum() <= 1e-12 * eigenvalues[0]
    torch.testing.assert_close(found.eigenvalues[:clear], eigenvalues[:clear], rtol=1e-10, atol=0.0)
    torch.testing.assert_close(found.total_variance, eigenvalues.sum(), rtol=1e-10, atol=0.0)
    cosines = (found.components[:clear] * directions[:clear]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("builder", "name"), ALL)
def test_streaming_equals_one_full_svd_of_a_slow_twins_contributions(
    builder: str, name: str
) -> None:
    size = SIZES[name]
    model, images = EVERY[builder](size).double(), pixels(60, size).double()
    basis = SpectralBasis.fit(model, images.split(7), units=KINDS)
    assert basis.units == tuple(find_tower(model).units(KINDS))
    assert (basis.num_samples, basis.source) == (60, "data")
    expected = slow_contributions(model, images)
    for unit in basis.units:
        assert_pca(basis[unit], expected[unit])


@table("name", SIZES)
def test_components_are_orthonormal_ordered_and_signed(name: str) -> None:
    size = SIZES[name]
    model = clip_model(size)
    fitted = SpectralBasis.fit(model, pixels(60, size), units=KINDS)
    for basis in (fitted, SpectralBasis.from_weights(model, units=KINDS)):
        for unit, count in zip(basis.units, basis.component_counts, strict=True):
            found = basis[unit]
            assert found.components.shape == (count, size.readout)
            eye = torch.eye(count, dtype=found.components.dtype)
            torch.testing.assert_close(found.components @ found.components.T, eye)
            assert (found.eigenvalues > 0).all()
            assert (found.eigenvalues.diff() <= 0).all()
            largest = found.components.gather(1, found.components.abs().argmax(1, keepdim=True))
            assert (largest > 0).all()
            limit = min(size.readout, size.width)
            if unit.kind == "head":
                limit = min(size.readout, size.width // size.heads + 1)
            assert 1 <= count <= limit


@pytest.mark.parametrize("seed", range(3))
def test_neither_batch_sizes_nor_order_nor_processes_matter(seed: int) -> None:
    model, images = clip_model().double(), pixels(60).double()
    whole = SpectralBasis.fit(model, images, units=KINDS)
    generator = torch.Generator().manual_seed(seed)
    shuffled = images[torch.randperm(60, generator=generator)]
    sizes = [[1, 2, 20, 37], [59, 1], [10] * 6][seed]
    streamed = SpectralBasis.fit(model, shuffled.split(sizes), units=KINDS)
    parts = [BasisAccumulator(model, KINDS) for _ in range(3)]
    for number, batch in enumerate(shuffled.split(sizes)):
        parts[number % 3].update(batch)
    # as if two of them had come from other processes; one of them may have seen nothing
    main, *others = parts
    for other in others[::-1]:
        main.merge(pickle.loads(pickle.dumps(other)))
    merged = SpectralBasis.from_accumulator(main)
    assert merged.num_samples == streamed.num_samples == 60
    for unit in whole.units:
        assert_same(streamed[unit], whole[unit])
        assert_same(merged[unit], whole[unit])


def test_batches_may_be_tensors_mappings_or_one_batch_alone() -> None:
    model, images = clip_model(), pixels(30)
    expected = SpectralBasis.fit(model, images.split(10))
    counts: list[int] = []
    for batches in (
        [{"pixel_values": batch, "labels": None} for batch in images.split(10)],
        (BatchFeature({"pixel_values": batch}) for batch in images.split(10)),
        images,
        {"pixel_values": images},
    ):
        found = SpectralBasis.fit(model, batches, progress=counts.append)
        for unit in expected.units:
            assert_same(found[unit], expected[unit], 1e-5)
    assert counts == [10, 10, 10, 10, 10, 10, 30, 30]
    SpectralBasis.fit(model, images, progress=True)


@table(
    ("batches", "message"),
    [
        ([], r"too few images: a basis needs at least 2, got 0"),
        ([pixels(1)], r"too few images: a basis needs at least 2, got 1"),
        ([{"image": pixels(2)}], r"a batch holds \['image'\] and no 'pixel_values'"),
        ([[pixels(2), 1]], r"wanted pixel_values as a tensor, or a mapping .*, got a list"),
        ([pixels(4), pixels(4) * float("nan")], r"NaN or infinite values in 4 of 4 images"),
        ([pixels(4) / 0], r"NaN or infinite values"),
        (pixels(2)[0], r"wanted pixel_values as floats of shape"),
    ],
)
def test_bad_batches_are_refused(batches: object, message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        SpectralBasis.fit(clip_model(), batches)  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [("head",), ("head", "mlp"), ("output",)])
def test_too_few_images_for_the_components_are_refused(kinds: tuple[str, ...]) -> None:
    model = clip_model()
    with pytest.raises(
        ResiDualError, match=r"too few images: components=8 needs at least 9, got 8\. Give more"
    ):
        SpectralBasis.fit(model, pixels(8), units=kinds, components=8)
    enough = SpectralBasis.fit(model, pixels(9), units=kinds, components=8)
    assert enough.component_counts == [8] * len(enough.units)


def test_more_components_than_a_unit_has_are_no_matter_of_too_few_images() -> None:
    basis = SpectralBasis.fit(clip_model(), pixels(60), ("embed", "head"), components=1000)
    assert basis.component_counts == [1, 13, 13, 13, 13]
    assert basis.truncate(1000).component_counts == basis.component_counts
    assert basis.truncate(5).component_counts == [1, 5, 5, 5, 5]


def test_all_directions_of_few_images_are_kept_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="9 images span at most 8 of the 13 directions"):
        basis = SpectralBasis.fit(clip_model(), pixels(9), units=["head"])
    assert basis.component_counts == [8] * 4
    with pytest.raises(
        ResiDualError, match="components=9 needs at least 10, this basis has seen 9"
    ):
        basis.truncate(9)


def test_a_changed_layer_is_named_while_fitting() -> None:
    model = clip_model(Size(layers=3))
    model.vision_model.encoder.layers[1].register_forward_hook(lambda m, args, out: out * 1.01)
    with pytest.raises(ResiDualError, match=r"do not add up .* at layer 1"):
        SpectralBasis.fit(model, pixels(20))


def test_an_adapted_model_gives_the_basis_of_its_base() -> None:
    model, images = clip_model(), pixels(30)
    expected = SpectralBasis.fit(model, images)
    config = LoraConfig(target_modules=["out_proj", "visual_projection"], init_lora_weights=False)
    peft_model = get_peft_model(model, config).train()
    found = SpectralBasis.fit(peft_model, images)
    assert peft_model.training
    assert found.fingerprint == expected.fingerprint
    for unit in expected.units:
        assert_same(found[unit], expected[unit], 1e-5)
    expected.check_belongs_to(peft_model)


# truncation


@pytest.fixture(scope="module")
def basis() -> SpectralBasis:
    return SpectralBasis.fit(clip_model(), pixels(60), units=KINDS)


@table("share", [0.01, 0.5, 0.9, 0.999])
def test_a_share_keeps_the_fewest_directions_that_reach_it(
    basis: SpectralBasis, share: float
) -> None:
    cut = basis.truncate(share)
    fitted = SpectralBasis.fit(clip_model(), pixels(60), units=KINDS, components=share)
    for unit, count in zip(cut.units, cut.component_counts, strict=True):
        spectrum = basis[unit].eigenvalues.tolist()
        assert sum(spectrum[:count]) >= share * sum(spectrum)
        assert sum(spectrum[: count - 1]) < share * sum(spectrum)
        assert torch.equal(cut[unit].components, basis[unit].components[:count])
        assert torch.equal(cut[unit].total_variance, basis[unit].total_variance)
    assert fitted.component_counts == cut.component_counts


def test_all_and_the_whole_share_keep_everything(basis: SpectralBasis) -> None:
    for components in (None, 1.0, 1000):
        assert basis.truncate(components).component_counts == basis.component_counts
    assert basis.truncate(1).component_counts == [1] * len(basis.units)
    assert basis.truncate(3).truncate(2).component_counts == basis.truncate(2).component_counts


@table("components", [0, -1, 0.0, 1.5, float("nan"), True, "3", [2]])
def test_what_is_no_truncation_is_refused(basis: SpectralBasis, components: object) -> None:
    for cut in (
        basis.truncate,
        lambda c: SpectralBasis.from_weights(clip_model(), components=c),
        lambda c: SpectralBasis.fit(clip_model(), [], components=c),
    ):
        with pytest.raises(ResiDualError, match=r"wanted None \(all\), an integer from 1 on"):
            cut(components)  # type: ignore[arg-type]


@table("components", [4, 0.999999, 1.0])
def test_what_was_cut_off_cannot_be_asked_for_again(
    basis: SpectralBasis, components: float
) -> None:
    with pytest.raises(
        ResiDualError, match=r"layer0.head0: wanted components=.* truncation left 3 with 0\.\d+ of"
    ):
        basis.select("head").truncate(3).truncate(components)


def test_a_unit_that_never_changes_has_no_directions() -> None:
    model = clip_model()
    projection = model.vision_model.encoder.layers[0].mlp.fc2
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    for basis in (SpectralBasis.fit(model, pixels(30)), SpectralBasis.from_weights(model)):
        assert basis["layer0.mlp"].components.shape == (0, 16)
        assert basis.truncate(0.9)["layer0.mlp"].components.shape == (0, 16)
        assert basis.truncate(2)["layer0.mlp"].eigenvalues.shape == (0,)


def test_the_whole_share_keeps_a_direction_too_small_to_count() -> None:
    eigenvalues = torch.tensor([1.0, 1e-14], dtype=torch.float64)
    unit = UnitBasis(torch.zeros(3), torch.eye(3)[:2], eigenvalues, eigenvalues.sum())
    assert len(unit.truncate(1.0).eigenvalues) == 2
    assert len(unit.truncate(0.9).eigenvalues) == 1


def test_n_images_have_at_most_n_minus_1_directions() -> None:
    # rounding can lift the others above zero
    found = spectrum(torch.zeros(5), torch.eye(5, dtype=torch.float64), None, count=4)
    assert found.components.shape == (3, 5)


# selection


def test_units_are_selected_by_kind_name_and_layer(basis: SpectralBasis) -> None:
    assert {unit.kind for unit in basis.select(["mlp", "head"]).units} == {"head", "mlp"}
    chosen = basis.select([Unit("mlp", 1), "layer0.head1"])
    assert [str(unit) for unit in chosen.units] == ["layer0.head1", "layer1.mlp"]
    assert torch.equal(chosen["layer1.mlp"].components, basis["layer1.mlp"].components)
    chosen = basis.select(["head", "embed"], layers=[1])
    assert [str(unit) for unit in chosen.units] == ["embed", "layer1.head0", "layer1.head1"]
    assert chosen.means.shape == (3, 16)


def test_what_the_basis_has_not_is_refused(basis: SpectralBasis) -> None:
    heads = basis.select("head")
    with pytest.raises(
        ResiDualError, match=r"the basis has no unit mlp; it has 4, layer0.head0 to"
    ):
        heads.select(["head", "mlp"])
    with pytest.raises(ResiDualError, match=r"the basis has no unit layer7.mlp"):
        basis["layer7.mlp"]
    with pytest.raises(ResiDualError, match="'layer7' is not the name of a unit"):
        basis["layer7"]
    with pytest.raises(ResiDualError, match=r"no units in the layers \[5\]"):
        basis.select("head", layers=[1, 5])
    with pytest.raises(ResiDualError, match="no unit at all"):
        SpectralBasis.from_weights(clip_model(), units=())
    with pytest.raises(ResiDualError, match="no unit at all"):
        SpectralBasis.fit(clip_model(), pixels(), units=())
    with pytest.raises(ResiDualError, match=r"unknown units \['heads'\]"):
        SpectralBasis.fit(clip_model(), pixels(), units=["heads"])


# files


def changed(basis: SpectralBasis) -> SpectralBasis:
    """Change every tensor, so that nothing computed afresh could pass for what was saved."""
    return replace(
        basis,
        means=basis.means + 1,
        components=[-components for components in basis.components],
        eigenvalues=[eigenvalues * 2 for eigenvalues in basis.eigenvalues],
        total_variance=basis.total_variance * 3,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_saved_is_loaded(basis: SpectralBasis, tmp_path: Path, dtype: torch.dtype) -> None:
    # in half precision shares of variance are told as before
    basis.save_pretrained(tmp_path / "whole", dtype)
    whole = SpectralBasis.from_pretrained(tmp_path / "whole")
    for share in (0.9, 0.999, 1.0, 100):
        wanted = basis.truncate(share).component_counts
        assert whole.truncate(share).component_counts == wanted
    saved = changed(basis.truncate(5) if dtype == torch.bfloat16 else basis)
    saved.save_pretrained(tmp_path / "new" / "basis", dtype)
    loaded = SpectralBasis.from_pretrained(tmp_path / "new" / "basis")
    for field in ("units", "num_samples", "source", "fingerprint", "component_counts"):
        assert getattr(loaded, field) == getattr(saved, field)
    assert loaded.means.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    kinds = {"mean": dtype, "components": dtype, "eigenvalues": wide, "total_variance": wide}
    for unit in saved.units:
        for field, kind in kinds.items():
            assert torch.equal(getattr(loaded[unit], field), getattr(saved[unit], field).to(kind))
    loaded.check_belongs_to(clip_model())
    assert sorted(path.name for path in (tmp_path / "new" / "basis").iterdir()) == [
        METADATA,
        TENSORS,
    ]


def test_a_loaded_float32_basis_can_be_cut_like_the_one_saved(
    basis: SpectralBasis, tmp_path: Path
) -> None:
    basis.save_pretrained(tmp_path)
    loaded = SpectralBasis.from_pretrained(tmp_path)
    for components in (None, 1.0, 0.9, 2, 1000):
        cut = loaded.truncate(components)
        assert cut.component_counts == basis.truncate(components).component_counts


def test_a_unit_without_directions_is_saved_too(tmp_path: Path) -> None:
    model = clip_model()
    nn.init.zeros_(model.vision_model.encoder.layers[0].mlp.fc2.weight)
    SpectralBasis.from_weights(model).save_pretrained(tmp_path)
    assert SpectralBasis.from_pretrained(tmp_path).component_counts[2] == 0


@pytest.fixture
def folder(basis: SpectralBasis, tmp_path: Path) -> Path:
    basis.save_pretrained(tmp_path)
    return tmp_path


@table("name", [TENSORS, METADATA])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ResiDualError, match=rf"wanted the file '.*{name}', which is missing"):
        SpectralBasis.from_pretrained(folder)


@table("name", [TENSORS, METADATA])
@table("share", [0, 0.001, 0.5, 0.99])
def test_a_file_cut_short_is_named(folder: Path, name: str, share: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ResiDualError, match=rf"{name}' is not .*cut short"):
        SpectralBasis.from_pretrained(folder)


@table("name", [TENSORS, METADATA])
def test_a_file_of_another_kind_is_named(folder: Path, name: str) -> None:
    torch.save({"means": torch.zeros(3)}, folder / name)
    with pytest.raises(ResiDualError, match=rf"{name}' is not "):
        SpectralBasis.from_pretrained(folder)


def drop(key: str) -> Callable[[dict], dict]:
    return lambda data: {name: value for name, value in data.items() if name != key}


@table(
    ("change", "message"),
    [
        (drop("units"), r"residual_basis\.json', field units: wanted a list, each text, got none"),
        (drop("component_counts"), "field component_counts: wanted a list, .* got none"),
        (drop("fingerprint"), "field fingerprint: wanted fields by name, got none"),
        (drop("num_samples"), "field num_samples: wanted a whole number or null, got none"),
        (drop("source"), "field source: wanted 'data' or 'weights', got none"),
        (lambda data: {**data, "units": data["units"][1:]}, "holds no whole basis: "),
        (lambda data: {**data, "units": data["units"][:1] * 7}, "1 of them different"),
        (lambda data: {**data, "units": [], "component_counts": []}, "no whole basis: 0 units"),
        (
            lambda data: {**data, "component_counts": data["component_counts"][1:]},
            r"\d units, \d of them different, and \d counts",
        ),
        (lambda data: {**data, "component_counts": [*data["component_counts"], 0]}, "no whole"),
        (
            lambda data: {**data, "component_counts": [1 for _ in data["units"]]},
            r"wanted components in '.*' as floats of shape",
        ),
        # a size is believed once the file has it
        (
            lambda data: {**data, "component_counts": [2**31 for _ in data["units"]]},
            r"wanted components in '.*' as floats of shape",
        ),
        (
            lambda data: {**data, "component_counts": [-1 for _ in data["units"]]},
            r"field component_counts\[0\]: wanted a number from 0 to",
        ),
        (
            lambda data: {**data, "fingerprint": {**data["fingerprint"], "width": 17}},
            "wanted means in '.*' as floats of shape",
        ),
        (lambda data: {**data, "units": 3}, "field units: wanted a list, each text, got 3"),
        (
            lambda data: {**data, "units": ["layer" + "9" * 5000 + ".mlp", *data["units"][1:]]},
            "is not the name of a unit",
        ),
        (lambda data: {**data, "format_version": 2}, "by a newer residual-peft .format 2, this"),
        (lambda data: [], r"residual_basis\.json': wanted fields by name, got list of 0"),
        (lambda data: "text", r"residual_basis\.json': wanted fields by name, got 'text'"),
    ],
)
def test_metadata_of_another_basis_is_refused(
    folder: Path, change: Callable[[dict], object], message: str
) -> None:
    metadata = json.loads((folder / METADATA).read_text())
    (folder / METADATA).write_text(json.dumps(change(metadata)))
    with pytest.raises(ResiDualError, match=message):
        SpectralBasis.from_pretrained(folder)


@table(
    ("key", "value", "message"),
    [
        ("means", float("nan"), "means in '.*' holds NaN or infinite values"),
        ("components", float("inf"), "components in '.*' holds NaN or infinite values"),
        ("eigenvalues", float("nan"), "eigenvalues in '.*' holds NaN or infinite values"),
        ("eigenvalues", -1.0, "eigenvalues in '.*' are variances, and some are below 0"),
        ("total_variance", -float("inf"), "total_variance in '.*' holds NaN or infinite values"),
        ("total_variance", -0.5, "total_variance in '.*' are variances, and some are below 0"),
    ],
)
def test_numbers_that_no_basis_has_are_refused(
    folder: Path, key: str, value: float, message: str
) -> None:
    tensors, _ = read_tensors(folder / TENSORS)
    spoiled = tensors[key].clone()
    spoiled.view(-1)[-1] = value
    write_tensors(folder / TENSORS, {**tensors, key: spoiled})
    with pytest.raises(ResiDualError, match=message):
        SpectralBasis.from_pretrained(folder)
    write_tensors(folder / TENSORS, {**tensors, key: tensors[key].to(torch.int32)})
    with pytest.raises(ResiDualError, match=rf"wanted {key} in .* as floats of shape .*int32"):
        SpectralBasis.from_pretrained(folder)


@table("key", ["means", "components", "eigenvalues", "total_variance"])
def test_tensors_missing_or_of_another_shape_are_refused(folder: Path, key: str) -> None:
    tensors, _ = read_tensors(folder / TENSORS)
    for wrong in (drop(key)(tensors), {**tensors, key: tensors[key][1:].clone()}):
        write_tensors(folder / TENSORS, wrong)
        with pytest.raises(ResiDualError, match=f"has no tensor {key}|wanted {key} in '.*' as f"):
            SpectralBasis.from_pretrained(folder)


def test_a_basis_that_is_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResiDualError, match="could not find the basis 'nobody/no-basis'"):
        SpectralBasis.from_pretrained("nobody/no-basis")
    (tmp_path / "file").touch()
    with pytest.raises(ResiDualError, match="wanted the directory of a basis, got the file"):
        SpectralBasis.from_pretrained(tmp_path / "file")
    with pytest.raises(ResiDualError, match="wanted a directory to write to, got the file"):
        SpectralBasis.from_weights(clip_model()).save_pretrained(tmp_path / "file")


def test_a_basis_is_pushed_whole(basis: SpectralBasis, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def push(directory: str, repo_id: str, **options: object) -> str:
        seen.update(options, repo_id=repo_id, basis=SpectralBasis.from_pretrained(directory))
        return "done"

    monkeypatch.setattr("residual_peft.bases.basis.push_directory", push)
    assert basis.push_to_hub("me/basis", private=True) == "done"
    assert (seen["repo_id"], seen["private"]) == ("me/basis", True)
    assert seen["basis"].component_counts == basis.component_counts


def test_a_basis_survives_copying(basis: SpectralBasis) -> None:
    for twin in (copy.deepcopy(basis), pickle.loads(pickle.dumps(basis))):
        assert twin.units == basis.units
        assert torch.equal(twin.means, basis.means)
