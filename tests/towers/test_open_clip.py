"""open_clip's own models: a fused attention, a projection without a module, a tower as readout."""

import copy
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from residual_peft.bases.decomposition import decompose
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.errors import ResiDualError
from residual_peft.solvers import fit_gains
from residual_peft.solvers.coordinates import collect_with_basis
from residual_peft.towers import captures
from residual_peft.towers.fused_attention import check_attention, heads_at
from residual_peft.towers.registry import find_tower
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, fit_bases
from tests.models import Size, clip_model, pixels
from tests.open_clip_models import CLASSES, open_clip, open_clip_model, tokens
from tests.pairs import in_turn, pairwise, table
from tests.slow import slow_contributions
from tests.tokenizers import clip_tokenizer
from tests.tuner.twin import IMAGES, expected, randomize_gains, relative

KINDS: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "CustomTextCLIP": {"kind": "CustomTextCLIP"},
    "layer scale": {"layer_scale": 0.5},
    "QuickGELU": {"quick_gelu": True},
    "tokens before batch": {"batch_first": False},
    "no norm before": {"vision": {"no_ln_pre": True}},
    "norm after pooling": {"vision": {"final_ln_after_pool": True}},
    "tokens beside": {"vision": {"output_tokens": True}},
    "patch dropout": {"vision": {"patch_dropout": 0.5}},
    "one layer, d > D": {"size": Size(layers=1, width=18, heads=3, readout=29)},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> Any:
    # frozen, as PEFT makes it: torch's attention takes another path through weights that train
    return open_clip_model(**KINDS[kind]).requires_grad_(False)


def images(kind: str = "CLIP", count: int = 5) -> torch.Tensor:
    return pixels(count, KINDS[kind].get("size"))


def with_adapter(
    model: nn.Module, config: ResiDualConfig | None = None, size: Size | None = None
) -> Any:
    dtype = next(model.parameters()).dtype
    adapted = get_peft_model(model, config or ResiDualConfig())
    fit_bases(adapted, [pixels(IMAGES, size, seed=5).to(dtype)])
    randomize_gains(adapted)
    return adapted.eval()


@every_kind
def test_each_unit_is_what_plain_loops_find(kind: str) -> None:
    model = make(kind).double()
    found = decompose(model, images(kind).double())
    slow = slow_contributions(model, images(kind))
    for index, unit in enumerate(found.units):
        assert relative(found.contributions[:, index], slow[unit]) < 1e-10, unit
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 1e-12
    assert len(found.units) == len(slow) - 1


@table("kind", KINDS)
def test_float32_and_bfloat16_pass_the_check(kind: str) -> None:
    for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 0.03)):
        found = decompose(make(kind).to(dtype), images(kind).to(dtype))
        assert relative(found.contributions.sum(1) + found.bias, found.readout) < bound


@table("precision", ["bf16", "pure_bf16", "fp16"])
def test_the_precisions_of_create_model(tmp_path: Path, precision: str) -> None:
    """Norms and embeddings stay float32 in the mixed ones."""
    vision = {"image_size": 32, "layers": 3, "width": 48, "head_width": 12, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("tiny", pretrained=None, precision=precision)
    half = model.visual.conv1.weight.dtype
    assert half == (torch.float16 if precision == "fp16" else torch.bfloat16)
    found = decompose(model.eval(), pixels(2, Size(image=32)).to(half))
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 0.05


def test_mixed_precision_by_autocast() -> None:
    model = make("CLIP")
    with torch.autocast("cpu", torch.bfloat16):
        found = decompose(model, pixels())
    assert found.readout.dtype == torch.float32
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 0.03


@in_turn(kind=KINDS, units=(("head",), ("embed", "head", "mlp"), ("output",)))
def test_the_adapted_readout_is_the_slow_one(kind: str, units: tuple[str, ...]) -> None:
    base, given = make(kind).double(), images(kind).double()
    config = ResiDualConfig(units=units, remainder="drop")
    model = with_adapter(make(kind).double(), config, size=KINDS[kind].get("size"))
    wanted = expected(base, model, given)
    assert relative(run_tower(model, given), wanted) < 1e-12
    assert relative(run_tower(base, given), wanted) > 0.01


@pytest.mark.parametrize("kind", CLASSES)
def test_every_way_into_the_model_is_adapted(kind: str) -> None:
    model, base = with_adapter(make(kind)), make(kind)
    wanted = expected(base, model, pixels())
    unit = nn.functional.normalize(wanted, dim=-1)
    image, text, scale = model(image=pixels(), text=tokens())
    assert relative(image, unit) < 1e-5
    assert torch.equal(text, base(text=tokens())[1])
    assert torch.equal(scale, base.logit_scale.exp())
    assert relative(model.encode_image(pixels()), wanted) < 1e-5
    assert relative(model(pixel_values=pixels()).image_embeds, wanted) < 1e-5
    assert relative(model.get_logits(pixels(), tokens())[0], scale * unit @ text.double().T) < 1e-5
    with model.disable_adapter():
        assert torch.equal(model.encode_image(pixels()), base.encode_image(pixels()))


def test_of_tokens_beside_the_readout_nothing_changes() -> None:
    model, base = with_adapter(make("tokens beside")), make("tokens beside")
    pooled, beside = model.encode_image(pixels())
    assert torch.equal(beside, base.encode_image(pixels())[1])
    assert relative(pooled, expected(base, model, pixels())) < 1e-5


def test_one_adapter_per_sample() -> None:
    model = with_adapter(make("CLIP"))
    model.add_adapter("other", ResiDualConfig(units=("mlp",)))
    randomize_gains(model, "other", seed=8)
    names = ["default", "__base__", "other", "default", "other"]
    mixed = model(image=pixels(), adapter_names=names)[0]
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                wanted = model.encode_image(pixels(), normalize=True)
        else:
            model.set_adapter(name)
            wanted = model.encode_image(pixels(), normalize=True)
        assert relative(mixed[row], wanted[row]) < 1e-6


@pytest.mark.parametrize("kind", CLASSES)
def test_saved_loaded_copied_and_pickled(kind: str, tmp_path: Path) -> None:
    model = with_adapter(make(kind))
    wanted = run_tower(model, pixels())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(kind), tmp_path)
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run_tower(other, pixels()), wanted)
    again = copy.deepcopy(model)
    again.base_model.model.visual.base_layer.proj.data.zero_()  # the copy reads its own projection
    assert not find_tower(again).readout_matrix().any()
    assert torch.equal(run_tower(model, pixels()), wanted)


def test_unloading_gives_the_model_back_without_a_hook() -> None:
    model, base = make("CLIP"), make("CLIP")
    unloaded = with_adapter(model).unload()
    assert unloaded is model
    assert type(model.visual).__name__ == "VisionTransformer"
    hooks = [
        name
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]
    assert not hooks
    assert "forward" not in vars(model)
    assert torch.equal(model.encode_image(pixels()), base.encode_image(pixels()))
    decompose(model, pixels())
    assert not captures._frames.open
    assert not captures._frames.finished


def test_attributes_of_the_tower_are_at_hand_behind_the_adapter() -> None:
    model, base = with_adapter(make("CLIP")), make("CLIP").visual
    assert model.visual.image_size == base.image_size == (16, 16)
    assert torch.equal(model.visual.proj, base.proj)
    assert len(model.visual.transformer.resblocks) == 2
    assert not hasattr(model.visual, "nothing_of_that_name")
    with pytest.raises(ResiDualError, match="forward_intermediates goes past its readout"):
        model.forward_intermediates(pixels())
    with model.disable_adapter():
        found = model.forward_intermediates(pixels(), normalize=False)["image_features"]
    assert torch.equal(found, base(pixels()))
    model.visual.set_grad_checkpointing()
    assert model.visual.transformer.grad_checkpointing
    projection = with_adapter(clip_model()).base_model.model.visual_projection
    assert not hasattr(projection, "out_features")  # a tower's alone


def test_gains_train_and_the_backbone_does_not() -> None:
    model = with_adapter(make("CLIP")).train()
    model.visual.set_grad_checkpointing()
    model.encode_image(pixels()).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert len(trained) == 1
    assert "residual_peft_gains" in next(iter(trained))


def test_threads_share_the_model() -> None:
    model = with_adapter(make("CLIP"))
    wanted = [run_tower(model, pixels(seed=seed)) for seed in range(4)]
    found: dict[int, torch.Tensor] = {}

    def work(seed: int) -> None:
        for _ in range(20):
            found[seed] = run_tower(model, pixels(seed=seed)).detach()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(relative(found[seed], wanted[seed]) < 1e-6 for seed in range(4))


def test_fitting_on_coordinates() -> None:
    made = ZeroShotClassifier(with_adapter(make("CLIP")), ("a", "b"), torch.randn(2, 16))
    batch = {"pixel_values": pixels(IMAGES, seed=5), "labels": torch.arange(IMAGES) % 2}
    coordinates = collect_with_basis(made.model, [batch])
    before = made.loss(run_tower(made.model, batch["pixel_values"]), batch["labels"])
    fit_gains(made, coordinates, epochs=3)
    after = made.loss(run_tower(made.model, batch["pixel_values"]), batch["labels"])
    assert after < before


def test_class_names_by_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    model = open_clip_model(text={"vocab_size": 49408})
    made = ZeroShotClassifier.from_text(
        with_adapter(model), tokenizer, ("cat", "dog"), ("a {}.", "one {}.")
    )
    prompts = tokenizer(["a cat.", "one cat.", "a dog.", "one dog."])
    each = nn.functional.normalize(model.encode_text(prompts).detach(), dim=-1)
    wanted = nn.functional.normalize(each.view(2, 2, -1).mean(1), dim=-1)
    torch.testing.assert_close(made.class_embeddings, wanted)
    assert made.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    made.save_pretrained(tmp_path)
    base = open_clip_model(text={"vocab_size": 49408})
    loaded = ZeroShotClassifier.from_pretrained(tmp_path, model=base)
    readout = run_tower(loaded.model, pixels())
    assert torch.equal(loaded.logits(readout), made.logits(run_tower(made.model, pixels())))
    with pytest.raises(ResiDualError, match="model=\\.\\.\\."):
        ZeroShotClassifier.from_pretrained(tmp_path)
    for wrong in (clip_tokenizer(), open_clip.SimpleTokenizer(context_length=20)):
        with pytest.raises(ResiDualError, match=r"open_clip's own tokenizer .* \(prompts, 16\)"):
            ZeroShotClassifier.from_text(model, wrong, ("cat", "dog"))


def masks(heads: int, batch: int, length: int) -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.rand(length, length, generator=generator) < 0.4
    hidden.fill_diagonal_(False)
    added = torch.randn(batch * heads, length, length, generator=generator, dtype=torch.float64)
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[1, -1] = True
    return {
        "none": {},
        "bool": {"attn_mask": hidden},
        "float": {"attn_mask": added[0]},
        "causal": {"attn_mask": torch.full((length, length), -torch.inf).triu(1).double()},
        "bool 3-D": {"attn_mask": hidden.expand(batch * heads, -1, -1)},
        "float 3-D": {"attn_mask": added},
        "padding": {"key_padding_mask": padding},
    }


@table(
    ("mask", "token", "bias", "batch_first"),
    pairwise(masks(1, 2, 1), [0, 3, torch.tensor([4, 1, 2])], [True, False], [True, False]),
)
def test_what_a_fused_attention_projects(mask: str, token: Any, bias: bool, batch_first) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    stream = torch.randn(3, 5, 12, dtype=torch.float64)
    given = [stream if batch_first else stream.transpose(0, 1)] * 3
    options = masks(3, 3, 5)[mask]
    output = attention(*given, need_weights=False, **options)[0]
    output = output if batch_first else output.transpose(0, 1)
    heads = heads_at(attention, token, *given, **options)
    assert not heads.requires_grad
    found = attention.out_proj(heads)
    rows = torch.arange(3)
    wanted = output[rows, token if isinstance(token, torch.Tensor) else torch.tensor([token] * 3)]
    assert relative(found, wanted) < 1e-12


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "ResNet": (
        lambda: open_clip.CLIP(
            16,
            {"layers": (1, 1, 1, 1), "width": 16, "head_width": 64, "image_size": 32},
            {"context_length": 8, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1},
        ),
        "CLIP: its image tower is a open_clip.modified_resnet.ModifiedResNet; wanted open_clip's",
    ),
    "attention pooling": (
        lambda: open_clip_model(
            vision={"attentional_pool": True, "attn_pooler_heads": 2, "pool_type": "tok"}
        ),
        r"has an attention pooling \(attn_pool\); wanted",
    ),
    "mean": (lambda: open_clip_model(vision={"pool_type": "avg"}), "has pool_type='avg'; wanted"),
    "custom blocks": (
        lambda: open_clip_model("CustomTextCLIP", vision={"qk_norm": True}),
        "has a CustomResidualAttentionBlock in layer 0 .*qk_norm",
    ),
    "another package": (
        lambda: type("CLIP", (nn.Module,), {})(),
        r"CLIP: its image tower is a torch\.nn.*\.Identity; wanted open_clip's VisionTransformer",
    ),
}


@table("case", REFUSED)
def test_towers_of_other_kinds_are_refused(case: str) -> None:
    build, message = REFUSED[case]
    model = build()
    for work in (decompose, lambda model, _: get_peft_model(model, ResiDualConfig())):
        with pytest.raises(ResiDualError, match=message):
            work(model, pixels())


def test_what_is_refused_of_a_known_tower() -> None:
    with pytest.raises(ResiDualError, match=r"readout='mean': the fused attention of CLIP is read"):
        find_tower(make("CLIP"), readout="mean")
    with pytest.raises(ResiDualError, match="CLIP is not known for its text tower"):
        find_tower(make("CLIP"), "text")
    with pytest.raises(ResiDualError, match=r"does not take images of 24 x 24 pixels .*16 x 16"):
        decompose(make("CLIP"), pixels(size=Size(image=24)))
    with pytest.raises(ResiDualError, match=r"attn.out_proj is inside the nn.MultiheadAttention"):
        get_peft_model(make("CLIP"), ResiDualConfig(mode="stream"))
    with pytest.raises(ResiDualError, match="layer 0 is a MultiheadAttention with parts of its"):
        check_attention("layer 0", nn.MultiheadAttention(8, 2, add_bias_kv=True))
