"""Pooled readouts, readouts cut out of all tokens, and text towers: each against its slow twin."""

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional

from residual_peft import (
    ResiDualConfig,
    SpectralBasis,
    Unit,
    collect_coordinates,
    decompose,
    find_tower,
    fit_bases,
    gains_by_module,
    gains_of,
)
from residual_peft.errors import ResiDualError
from residual_peft.solvers.coordinates import collect_with_basis
from residual_peft.towers.running import run_tower
from residual_peft.tuner import adapted_tower, adapter_basis
from tests.pairs import in_turn, table
from tests.pooled import CASES, EOS, POOLED, Pooled, double, own_readout, slow_parts
from tests.slow import slow_pca
from tests.tuner.stream_twin import slow as slow_stream
from tests.tuner.twin import SlowBasis, randomize_gains, relative, slow_adapted

# one of each kind of readout where all would take long
SOME = (
    "SiglipModel",
    "Siglip2Model",
    "BlipForImageTextRetrieval",
    "BlipModel",
    "IJepaModel",
    "PixioModel",
    "ViTModel, patches",
    "CLIPModel, text",
    "CLIPTextModel",
    "SiglipModel, text",
)
some = pytest.mark.parametrize("name", SOME)
each_of_some = table("name", SOME)
COUNT = 60


def adapted(name: str, dtype: torch.dtype = torch.float32, **config: Any) -> PeftModel:
    """A tiny model with one adapter, its basis fitted on other samples, its gains random."""
    case = CASES[name]
    settings = ResiDualConfig(**{**dict(case.options), **config})
    model = get_peft_model(case.build().to(dtype), settings).eval()
    fit_bases(model, [cast(case.batch(COUNT, seed=5), dtype)])
    randomize_gains(model)
    return model


def cast(batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def read(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
    """The adapted readout."""
    return run_tower(model, batch, anatomy=adapted_tower(model, "default"))


def expected(case: Pooled, model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
    """y' by plain loops over what the twin says that every unit contributes."""
    config = model.peft_config["default"]
    layer = next(m for m in model.modules() if hasattr(m, "adapter_settings"))
    units, gains = layer.adapter_settings["default"].units, gains_of(model).detach().double()
    parts = slow_parts(case, case.build(), batch)
    bases = {}
    if config.granularity == "unit":
        split = dict(zip(units, gains, strict=True))
    else:
        basis = adapter_basis(model)
        split = dict(zip(units, gains.split(basis.component_counts), strict=True))
        bases = {u: SlowBasis(basis[u].components.double(), basis[u].mean.double()) for u in units}
    return slow_adapted(
        parts,
        units,
        bases,
        split,
        keep=config.remainder == "keep",
        restore_mean=config.restore_mean,
    )


@each_of_some
def test_eager_attention_sums_as_the_usual_does(name: str) -> None:
    case, batch = CASES[name], CASES[name].batch()
    model = case.build()
    before = own_readout(case, model, batch)
    model.set_attn_implementation("eager")
    found = decompose(model, batch, **dict(case.options))
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 1e-5
    assert relative(found.readout, before) < 1e-5


@each_of_some
def test_bfloat16_passes_the_check(name: str) -> None:
    case = CASES[name]
    batch = cast(case.batch(), torch.bfloat16)
    found = decompose(case.build().bfloat16(), batch, **dict(case.options))
    assert found.contributions.dtype == torch.float32
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 0.05


@table("name", ["SiglipModel", "BlipModel", "IJepaModel", "ViTMAEModel", "ViTModel, mean"])
def test_another_image_size_by_interpolated_positions(name: str) -> None:
    case = CASES[name]
    generator = torch.Generator().manual_seed(1)
    batch = {"pixel_values": torch.randn(5, 3, 24, 32, generator=generator)}
    model = case.build()
    options = {"interpolate_pos_encoding": True}
    found = decompose(model, batch, **dict(case.options), **options)
    assert relative(found.readout, own_readout(case, model, batch, **options)) < 1e-6
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 1e-5
    labelled = {**batch, **options, "labels": torch.zeros(5)}
    adapter = adapted(name)
    coordinates = collect_coordinates(adapter, [labelled])
    assert relative(coordinates.adapted(gains_of(adapter)), read(adapter, labelled)) < 1e-5


SETTINGS = {
    "default": {},
    "all kinds": {"units": ("embed", "head", "mlp", "pooler")},
    "output": {"units": ("output",)},
    "drop": {"remainder": "drop", "restore_mean": False, "components": 0.9},
    "five": {"components": 5},
    "per unit": {"granularity": "unit", "restore_mean": False, "remainder": "drop"},
}


@in_turn(name=CASES, settings=SETTINGS)
def test_units_and_the_adapted_readout_are_those_of_the_twin(name: str, settings: str) -> None:
    case, batch = CASES[name], CASES[name].batch()
    base = case.build()
    parts = slow_parts(case, base, batch)
    found = decompose(base.double(), double(batch), **dict(case.options))
    assert set(found.units) == set(parts) - {Unit("output")}
    for index, unit in enumerate(found.units):
        assert relative(found.contributions[:, index], parts[unit]) < 1e-10, unit
    assert relative(found.readout, parts[Unit("output")]) < 1e-12
    assert relative(found.contributions.sum(1) + found.bias, parts[Unit("output")]) < 1e-10

    model = adapted(name, **SETTINGS[settings])
    wanted = expected(case, model, batch)
    assert relative(read(model, batch), wanted) < 1e-5
    with model.disable_adapter():
        assert relative(read(model, batch), wanted) > 1e-3
        plain = read(model, batch)
    bare = model.unload()
    assert not any("residual_peft" in key for key, _ in bare.named_modules())
    assert torch.equal(
        run_tower(bare, batch, anatomy=find_tower(bare, **dict(case.options))), plain
    )


@some
def test_bases_are_those_of_one_full_decomposition(name: str) -> None:
    case, batch = CASES[name], CASES[name].batch(COUNT, seed=5)
    model = case.build()
    kinds = ("embed", "head", "mlp", "pooler", "output")
    halves = [{k: v[i : i + 23] for k, v in double(batch).items()} for i in range(0, COUNT, 23)]
    basis = SpectralBasis.fit(model.double(), halves, kinds, **dict(case.options))
    parts = slow_parts(case, model, batch)
    assert set(basis.units) == set(parts)
    for unit in basis.units:
        mean, directions, eigenvalues = slow_pca(parts[unit])
        kept = len(basis[unit].eigenvalues)
        torch.testing.assert_close(basis[unit].mean, mean)
        torch.testing.assert_close(
            basis[unit].eigenvalues, eigenvalues[:kept], rtol=1e-8, atol=1e-10 * eigenvalues[0]
        )
        assert eigenvalues[kept:].sum() < 1e-10 * eigenvalues[0]
        found, wanted = (
            (phi[:kept].T * values[:kept]) @ phi[:kept]  # the covariance, whatever the signs
            for phi, values in (
                (basis[unit].components, basis[unit].eigenvalues),
                (directions, eigenvalues),
            )
        )
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9 * float(eigenvalues[0]))


@each_of_some
def test_a_basis_from_the_weights_spans_what_the_units_write(name: str) -> None:
    """All but the shared bias, which moves with 1/σ: it is not among the weights' directions."""
    case = CASES[name]
    kinds = ("head", "mlp", "pooler")
    model = case.build().double()
    for key, value in model.named_parameters():
        if key.endswith(("out_proj.bias", "projection.bias", "o_proj.bias", "fc2.bias")) or (
            key.endswith("dense.bias")
        ):
            value.data.zero_()
    basis = SpectralBasis.from_weights(model, kinds, **dict(case.options))
    parts = slow_parts(case, model, case.batch(COUNT, seed=5))
    for unit in basis.units:
        phi = basis[unit].components
        torch.testing.assert_close(phi @ phi.T, torch.eye(len(phi), dtype=torch.float64))
        assert relative(parts[unit] @ phi.T @ phi, parts[unit]) < 1e-6, unit
        assert len(phi) <= parts[unit].shape[1]
        if unit.kind == "head" and case.kind != "attention":
            assert len(phi) <= 12, "no more than a head's own dimensions"


@each_of_some
def test_gradients_of_the_forward_and_of_coordinates_are_equal(name: str) -> None:
    case = CASES[name]
    model, batch = adapted(name, torch.float64), double(case.batch())
    gains = gains_of(model)
    target = torch.randn(5, read(model, batch).shape[1], dtype=torch.float64)
    functional.mse_loss(read(model, batch), target).backward()
    through, gains.grad = gains.grad, None
    found = collect_coordinates(model, [{**batch, "labels": torch.zeros(5)}])
    functional.mse_loss(found.adapted(gains), target).backward()
    assert through is not None
    torch.testing.assert_close(gains.grad, through, rtol=1e-8, atol=1e-10)


@each_of_some
def test_one_pass_for_bases_and_coordinates(name: str) -> None:
    case = CASES[name]
    batch = {**case.batch(COUNT, seed=5), "labels": torch.zeros(COUNT)}
    model = adapted(name)
    together = collect_with_basis(model, [batch])
    randomize_gains(model)
    one = together.adapted(gains_of(model))
    assert relative(one, read(model, batch)) < 1e-5


@some
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    case, batch = CASES[name], CASES[name].batch()
    model = adapted(name)
    wanted = read(model, batch)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.build(), tmp_path)
    assert relative(read(loaded, batch), wanted) < 1e-6
    assert loaded.peft_config["default"].readout == dict(case.options).get("readout")
    with pytest.raises(ResiDualError, match="belongs to the weights of"):
        PeftModel.from_pretrained(case.build(seed=1), tmp_path)


@each_of_some
def test_one_adapter_per_sample(name: str) -> None:
    case, batch = CASES[name], CASES[name].batch()
    model = adapted(name)
    config = {**dict(case.options), "units": ("head",)}
    model.add_adapter("other", ResiDualConfig(**config))
    fit_bases(model, [case.batch(50, seed=6)], adapter_name="other")
    randomize_gains(model, "other", seed=8)
    names = ["default", "__base__", "other", "other", "default"]
    with model.base_model._enable_peft_forward_hooks(adapter_names=names):
        mixed = read(model, batch)
    for row, adapter in enumerate(names):
        if adapter == "__base__":
            with model.disable_adapter():
                wanted = read(model, batch)
        else:
            model.set_adapter(adapter)
            wanted = read(model, batch)
        torch.testing.assert_close(mixed[row], wanted[row], rtol=1e-4, atol=1e-5)


@each_of_some
def test_two_active_adapters_add_up(name: str) -> None:
    case, batch = CASES[name], CASES[name].batch()
    model = adapted(name)
    model.add_adapter("other", ResiDualConfig(**{**dict(case.options), "units": ("head",)}))
    randomize_gains(model, "other", seed=8)
    with model.disable_adapter():
        total = -read(model, batch)
    for adapter in ("default", "other"):
        model.set_adapter(adapter)
        total = total + read(model, batch)
    model.base_model.set_adapter(["default", "other"])
    assert relative(read(model, batch), total) < 1e-5


@each_of_some
def test_copied_pickled_and_in_inference_mode(name: str) -> None:
    batch = CASES[name].batch()
    model = adapted(name)
    wanted = read(model, batch)
    assert torch.equal(read(copy.deepcopy(model), batch), wanted)
    assert torch.equal(read(pickle.loads(pickle.dumps(model)), batch), wanted)
    with torch.inference_mode():
        assert torch.equal(read(model, batch), wanted)


@each_of_some
def test_threads_share_one_model(name: str) -> None:
    case, model = CASES[name], adapted(name)
    batches = [case.batch(5, seed=seed) for seed in range(4)]
    wanted = [read(model, batch) for batch in batches]
    found: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        with torch.no_grad():
            found[number] = [read(model, batches[number]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, results in found.items():
        assert all(torch.equal(result, wanted[number]) for result in results)
    assert len(found) == 4


@table("name", ["ViTModel, mean", "ViTModel, patches", "SiglipModel, mean"])
def test_under_a_mean_every_token_of_it_moves_alike(name: str) -> None:
    case, batch = CASES[name], CASES[name].batch()
    model = adapted(name)
    tower: Any = adapted_tower(model, "default").tower
    after = tower(**batch).last_hidden_state
    with model.disable_adapter():
        before = tower(**batch).last_hidden_state
    first = case.prefix if case.kind == "patches" else 0
    assert torch.equal(after[:, :first], before[:, :first])
    moved = after[:, first:] - before[:, first:]
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), rtol=1e-4, atol=1e-5)
    assert moved.abs().max() > 1e-2


STREAM = [name for name in SOME if dict(CASES[name].options).get("readout") is None]
MORE = ("SiglipForImageClassification", "Siglip2ForImageClassification", "ViTMAEModel")


@table("name", [*STREAM, *MORE, "IJepaForImageClassification"])
def test_stream_mode_changes_every_token_and_merges(name: str) -> None:
    case, batch = CASES[name], CASES[name].batch()
    options = dict(case.options)
    model = get_peft_model(case.build(), ResiDualConfig(mode="stream", **options)).eval()
    fit_bases(model, [case.batch(COUNT, seed=5)])
    generator = torch.Generator().manual_seed(7)
    for gains in gains_by_module(model).values():
        gains.data = 1 + 0.5 * torch.randn(gains.shape, generator=generator)
    anatomy = find_tower(case.build(), **options)
    assert len(gains_by_module(model)) == 2 * len(anatomy.layers)
    wanted = own_readout(case, slow_stream(model, case.build()), double(batch))
    found = own_readout(case, model.get_base_model(), batch)
    assert relative(found, wanted) < 1e-5
    assert relative(own_readout(case, case.build(), batch), wanted) > 1e-3
    merged = model.merge_and_unload()
    assert relative(own_readout(case, merged, batch), wanted) < 1e-5


def test_a_pooling_head_keeps_the_attention_of_the_image_as_it_is() -> None:
    """Gains scale what is pooled, not where the pooling looks: the readout is affine in them."""
    model, batch = adapted("SiglipModel", torch.float64), double(CASES["SiglipModel"].batch())
    gains = gains_of(model)
    generator = torch.Generator().manual_seed(3)
    one, two = (torch.randn(gains.shape, generator=generator).double() for _ in range(2))
    readouts = []
    for values in (one, two, (one + two) / 2):
        gains.data = values.to(gains.dtype)
        readouts.append(read(model, batch))
    assert relative(readouts[2], (readouts[0] + readouts[1]) / 2) < 1e-6


@table("name", ["SiglipModel", "Siglip2Model", "ViTModel, mean", "BlipModel"])
def test_weights_are_not_rounded_under_autocast(name: str) -> None:
    case = CASES[name]
    model, batch = case.build(), case.batch()
    with torch.autocast("cpu", torch.bfloat16):
        found = decompose(model, batch, **dict(case.options))
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 0.03


@pytest.mark.parametrize(("eos", "place"), [(2, 3), (EOS, 6)])
def test_metaclip_2_reads_where_its_texts_end(eos: int, place: int) -> None:
    """CLIP's old configs say 2 and mean the highest token; MetaCLIP 2's says 2 and means it."""
    model = CASES["MetaClip2TextModelWithProjection"].build()
    model.text_model.eos_token_id = model.text_model.config.eos_token_id = eos
    ids = torch.tensor([[5, 9, 8, 2, 7, 9, EOS, 4]])
    assert find_tower(model).readout.locate((ids,), {}).tolist() == [place]
    found = decompose(model, {"input_ids": ids})
    assert relative(found.readout, model(input_ids=ids).text_embeds) < 1e-6


def test_a_mean_of_texts_leaves_out_padding() -> None:
    model = CASES["SiglipTextModel"].build()
    ids, mask = CASES["SiglipTextModel"].batch()["input_ids"], torch.ones(5, 9, dtype=torch.long)
    mask[1, 4:] = mask[3, 7:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    found = decompose(model, batch, readout="mean")
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 1e-5
    tokens = model(**batch).last_hidden_state
    assert relative(found.readout[1], tokens[1, :4].mean(0)) < 1e-6
    with pytest.raises(ResiDualError, match="readout='patches' of a text tower"):
        find_tower(model, readout="patches")


def test_a_basis_of_one_readout_is_none_of_another(tmp_path: Path) -> None:
    """The weights are the same, and what the units contribute is not."""
    build, batch = CASES["ViTModel, mean"].build, CASES["ViTModel, mean"].batch(COUNT)
    SpectralBasis.fit(build(), [batch]).save_pretrained(tmp_path)
    get_peft_model(build(), ResiDualConfig(basis=str(tmp_path)))
    for readout in ("mean", "patches"):
        with pytest.raises(ResiDualError, match="the basis belongs to the weights of ViTModel"):
            get_peft_model(build(), ResiDualConfig(readout=readout, basis=str(tmp_path)))


def test_a_second_readout_of_one_tower_is_refused() -> None:
    model = get_peft_model(CASES["ViTModel, mean"].build(), ResiDualConfig(readout="mean"))
    with pytest.raises(ResiDualError, match=r"readout='mean' like those .* got readout=None"):
        model.add_adapter("own", ResiDualConfig())


def test_a_tower_whose_norm_sees_one_token_has_no_mean() -> None:
    with pytest.raises(ResiDualError, match="readout='mean': CLIPModel runs its final norm over"):
        find_tower(CASES["CLIPModel, text"].build(), "image", "mean")
    with pytest.raises(ResiDualError, match=r"wanted readout 'own' .* got 'max'"):
        find_tower(CASES["ViTModel, mean"].build(), readout="max")


def test_a_projection_that_is_called_by_itself_is_refused() -> None:
    model = adapted("BlipForImageTextRetrieval")
    tokens = torch.randn(5, 24)
    with pytest.raises(ResiDualError, match="vision_proj got an input that the final norm of the"):
        model.get_base_model().vision_proj(tokens)
    read(model, CASES["BlipForImageTextRetrieval"].batch())
    with pytest.raises(ResiDualError, match="vision_proj got an input that the final norm of the"):
        model.get_base_model().vision_proj(tokens)


def test_blip_compares_adapted_images_with_texts() -> None:
    case = POOLED["BlipForImageTextRetrieval"]
    model, batch = adapted("BlipForImageTextRetrieval"), case.batch()
    ids = torch.randint(3, 60, (4, 6), generator=torch.Generator().manual_seed(2))
    inside = model.get_base_model()
    scores = inside(input_ids=ids, use_itm_head=False, **batch).itm_score
    images = functional.normalize(expected(case, model, batch), dim=-1)
    texts = inside.text_encoder(input_ids=ids).last_hidden_state[:, 0]
    texts = functional.normalize(inside.text_proj(texts), dim=-1)
    assert relative(scores, images @ texts.double().T) < 1e-5


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No capture outlives its pass."""
    from residual_peft.towers import captures

    yield
    assert not captures._frames.open
