"""One backbone in two libraries: the same fingerprint, the same adapters, the same predictions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from residual_peft import (
    ResiDualConfig,
    SpectralBasis,
    ZeroShotClassifier,
    convert_adapter,
    fit_bases,
    open_clip_to_transformers,
)
from residual_peft.bases.fingerprint import Fingerprint
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import adapter_basis, load_adapter
from tests.models import Size, clip_model, pixels
from tests.open_clip_models import CLASSES, open_clip_model, tokens
from tests.pairs import dealt, in_turn, table
from tests.tuner.twin import IMAGES, randomize_gains, relative

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "CustomTextCLIP": {"kind": "CustomTextCLIP"},
    "layer scale": {"layer_scale": 0.5},
    "QuickGELU": {"quick_gelu": True},
    "tokens before batch": {"batch_first": False},
    "norm after pooling": {"vision": {"final_ln_after_pool": True}},
    "d > D": {"size": Size(width=18, heads=3, readout=29)},
}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def both(options: str = "layer scale") -> dict[str, nn.Module]:
    """The same weights in both libraries."""
    model = open_clip_model(**OPTIONS[options])
    return {"open_clip": model, "transformers": open_clip_to_transformers(model)}


def save_adapter(model: nn.Module, directory: Path, **options: Any) -> torch.Tensor:
    adapted = get_peft_model(model, ResiDualConfig(**options))
    fit_bases(adapted, [pixels(IMAGES, seed=5)])
    randomize_gains(adapted)
    adapted.eval().save_pretrained(directory)
    return run_tower(adapted, pixels()).detach()


@table("options", OPTIONS)
def test_the_copy_computes_the_same(options: str) -> None:
    model = open_clip_model(**OPTIONS[options]).double()
    found = open_clip_to_transformers(model)
    assert (
        relative(run_tower(found, pixels().double()), run_tower(model, pixels().double())) < 1e-12
    )
    text = found.get_text_features(input_ids=tokens()).pooler_output
    assert relative(text, model.encode_text(tokens())) < 1e-12
    assert torch.equal(found.logit_scale, model.logit_scale)
    logits = found(pixel_values=pixels().double(), input_ids=tokens()).logits_per_image
    assert relative(logits, model.get_logits(pixels().double(), tokens())[0]) < 1e-12


def test_the_copy_reads_texts_at_a_named_end() -> None:
    model = open_clip_model(text={"pool_type": "eos", "eos_id": 60}).double()
    ids = tokens()
    ids[:, 3] = 60  # and not at the highest token, 63
    found = open_clip_to_transformers(model)
    text = found.get_text_features(input_ids=ids).pooler_output
    assert relative(text, model.encode_text(ids)) < 1e-12


@table(("options", "dtype"), dealt(OPTIONS, (torch.float64, torch.float32)))
def test_fingerprints_are_equal(options: str, dtype: torch.dtype) -> None:
    model = open_clip_model(**OPTIONS[options])
    one, other = Fingerprint.of(model.to(dtype)), Fingerprint.of(open_clip_to_transformers(model))
    assert one.digests == other.digests
    assert one.architecture != other.architecture
    other_seed = open_clip_model(**OPTIONS[options], seed=1)
    assert not Fingerprint.of(other_seed).matches(one)


@table(
    "change",
    ["proj", "conv1.weight", "ln_post.bias", "transformer.resblocks.1.ls_2.gamma"]
    + [f"transformer.resblocks.0.attn.{name}" for name in ("in_proj_bias", "out_proj.weight")],
)
def test_every_weight_is_in_the_fingerprint(change: str) -> None:
    model = open_clip_model(layer_scale=0.5)
    before = Fingerprint.of(model)
    model.visual.get_parameter(change).data.view(-1)[0] += 1
    assert not Fingerprint.of(model).matches(before)


def test_half_precision_and_the_image_tower_alone_are_known(tmp_path: Path) -> None:
    model = open_clip_model()
    copy_ = open_clip_to_transformers(model)
    copy_.save_pretrained(tmp_path)
    tower = CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    assert Fingerprint.of(tower).digests == Fingerprint.of(model).digests
    full = Fingerprint.of(model)
    assert Fingerprint.of(model.bfloat16()).matches(full)
    assert Fingerprint.of(copy_).matches(Fingerprint.of(model))
    model = open_clip_model()
    model.visual.proj = None
    bare = Fingerprint.of(CLIPVisionModel.from_pretrained(tmp_path))
    assert bare.digests == Fingerprint.of(model).digests


@in_turn(
    options=OPTIONS,
    load=(PeftModel.from_pretrained, load_adapter),
    start=("open_clip", "transformers"),
)
def test_an_adapter_moves_as_it_is_or_converted(
    tmp_path: Path, options: str, load: Callable[..., Any], start: str
) -> None:
    end = "transformers" if start == "open_clip" else "open_clip"
    wanted = save_adapter(both(options)[start], tmp_path / "adapter")
    assert relative(run_tower(both(options)[start], pixels()), wanted) > 0.1
    other = both(options)[end]
    untouched = run_tower(other, pixels())
    there = convert_adapter(tmp_path / "adapter", other, tmp_path / "converted")
    assert torch.equal(run_tower(other, pixels()), untouched)
    assert not hasattr(other, "peft_config")
    for directory in (tmp_path / "adapter", there):
        found = load(both(options)[end], directory)
        assert relative(run_tower(found, pixels()), wanted) < 3e-6


@pytest.mark.parametrize("kind", CLASSES)
def test_there_and_back_is_the_same_file(tmp_path: Path, kind: str) -> None:
    model = open_clip_model(kind)
    model.name_or_path = "laion/one"
    copy_ = open_clip_to_transformers(model)
    save_adapter(model, tmp_path / "start")
    convert_adapter(tmp_path / "start", copy_, tmp_path / "there")
    convert_adapter(tmp_path / "there", open_clip_model(kind), tmp_path / "back")
    start, there, back = (tmp_path / name for name in ("start", "there", "back"))
    assert (start / WEIGHTS).read_bytes() != (there / WEIGHTS).read_bytes()
    names = load_file(there / WEIGHTS)
    assert all(name.startswith("base_model.model.visual_projection.residual") for name in names)
    one, other = load_file(start / WEIGHTS), load_file(back / WEIGHTS)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    configs = [json.loads((folder / CONFIG).read_text()) for folder in (start, there, back)]
    assert [config["target_modules"] for config in configs] == [
        ["visual"],
        ["visual_projection"],
        ["visual"],
    ]
    assert configs[1]["auto_mapping"]["base_model_class"] == "CLIPModel"
    assert configs[1]["fingerprint"]["architecture"] == "CLIPModel"
    assert configs[1]["fingerprint"]["digests"] == configs[0]["fingerprint"]["digests"]
    assert configs[0]["base_model_name_or_path"] == "laion/one"
    assert configs[2] == {**configs[0], "base_model_name_or_path": None}


def test_the_converted_file_is_what_the_other_library_writes(tmp_path: Path) -> None:
    model = open_clip_model()
    copy_ = open_clip_to_transformers(model)
    save_adapter(model, tmp_path / "start")
    convert_adapter(tmp_path / "start", copy_, tmp_path / "there")
    load_adapter(copy_, tmp_path / "start").save_pretrained(tmp_path / "written")
    one, other = load_file(tmp_path / "there" / WEIGHTS), load_file(tmp_path / "written" / WEIGHTS)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_one_basis_in_two_libraries(tmp_path: Path) -> None:
    models = both()
    adapted = get_peft_model(models["open_clip"], ResiDualConfig())
    fit_bases(adapted, [pixels(IMAGES, seed=5)])
    adapter_basis(adapted).save_pretrained(tmp_path)
    basis = SpectralBasis.fit(models["transformers"], [pixels(IMAGES, seed=5)])
    mine = adapter_basis(adapted)
    for one, other in zip(mine.components, basis.components, strict=True):
        for first, second in zip(one, other, strict=True):
            assert abs(float(first.double() @ second.double())) > 1 - 1e-4
    config = ResiDualConfig(basis=str(tmp_path), save_basis=False)
    again = get_peft_model(models["transformers"], config)
    gains = torch.randn(adapted.base_model.model.visual.residual_peft_gains["default"].shape)
    for model in (adapted, again):
        next(p for n, p in model.named_parameters() if "gains" in n).data.copy_(gains)
    assert relative(run_tower(again, pixels()), run_tower(adapted, pixels())) < 3e-6


def test_equal_predictions(tmp_path: Path) -> None:
    save_adapter(both()["open_clip"], tmp_path)
    embeddings = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    logits = []
    for model in both().values():
        adapted = load_adapter(model, tmp_path)
        made = ZeroShotClassifier(adapted, tuple("abcde"), embeddings)
        assert made.logit_scale == pytest.approx(float(model.logit_scale.exp()))
        logits.append(made.logits(run_tower(adapted, pixels(40))))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(*(found.argmax(1) for found in logits))


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    adapter, output = tmp_path / "adapter", tmp_path / "output"
    save_adapter(open_clip_model(), adapter)
    copy_ = open_clip_to_transformers(open_clip_model(seed=1))
    with pytest.raises(
        ResiDualError, match="belongs to the weights of CLIP, and this model, CLIPM"
    ):
        convert_adapter(adapter, copy_, output)
    with pytest.raises(ResiDualError, match="readout of width 16, but this model"):
        convert_adapter(adapter, clip_model(Size(readout=24)), output)
    with pytest.raises(ResiDualError, match="which is missing"):
        convert_adapter(tmp_path / "nothing", copy_, output)
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:100])
    with pytest.raises(ResiDualError, match="not a whole safetensors file"):
        convert_adapter(adapter, open_clip_to_transformers(open_clip_model()), output)
    stream = get_peft_model(clip_model(), ResiDualConfig(mode="stream"))
    stream.save_pretrained(tmp_path / "stream")
    with pytest.raises(ResiDualError, match=r"with mode='stream'; wanted 'readout'"):
        convert_adapter(tmp_path / "stream", clip_model(), output)
    assert not output.exists()


NOT_EXPRESSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no norm before": ({"vision": {"no_ln_pre": True}}, "no ln_pre"),
    "logit bias": ({"init_logit_bias": -1.0}, "a logit_bias"),
    "text pooling": ({"text": {"pool_type": "last"}}, "the text pooling 'last'"),
    "no causal mask": ({"text": {"no_causal_mask": True}}, "a text tower without a causal mask"),
    "text class token": (
        {"kind": "CustomTextCLIP", "text": {"embed_cls": True}},
        "a class token or a padding mask in its text tower",
    ),
    "text bias": ({"text": {"proj_bias": True}}, "a text projection that is no plain matrix"),
    "wide images": ({"vision": {"image_size": (16, 24)}}, "images or patches that are not square"),
    "tanh": (
        {"vision": {"act_kwargs": {"approximate": "tanh"}}},
        "several activations, or one that is neither GELU nor QuickGELU",
    ),
    "custom text": (
        {"text": {"block_type": "custom"}},
        "a text tower that is not open_clip's own",
    ),
}


@table("case", NOT_EXPRESSIBLE)
def test_what_transformers_cannot_express_is_refused(case: str) -> None:
    options, message = NOT_EXPRESSIBLE[case]
    model = open_clip_model(**options)
    with pytest.raises(ResiDualError, match=f"of open_clip has .*{message}.*, which transformers'"):
        open_clip_to_transformers(model)
    given = pixels()[..., :16] if "image_size" not in str(options) else torch.randn(5, 3, 16, 24)
    save = get_peft_model(model, ResiDualConfig())  # the tower itself is fine
    fit_bases(save, [torch.cat([given] * 12)])


def test_other_models_are_not_taken_for_open_clips() -> None:
    with pytest.raises(ResiDualError, match=r"wanted a CLIP or CustomTextCLIP of open_clip, got a"):
        open_clip_to_transformers(clip_model())
    pruned = open_clip_model()
    pruned.visual.proj = None
    with pytest.raises(ResiDualError, match="has no projection of images, which"):
        open_clip_to_transformers(pruned)
