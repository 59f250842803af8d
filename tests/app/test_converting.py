"""A merged adapter is a plain model that says the same; a converted one names the other model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, CLIPModel

from residual_peft import (
    ResiDualConfig,
    ResiDualError,
    ZeroShotClassifier,
    gains_by_module,
    open_clip_to_transformers,
)
from residual_peft.app.converting import adapter_for, merge_adapter
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.heads import ClassHead
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.towers.running import run_tower
from residual_peft.tuner import load_adapter
from tests.app.fitting.photos import photos
from tests.commands import stop
from tests.models import Size, pixels
from tests.tokenizers import VOCABULARY
from tests.training_case import save_clip
from tests.tuner.twin import relative


def saved(root: Path, name: str, mode: str) -> Path:
    backbone = load_backbone(root / "model")
    model = get_peft_model(backbone.model, ResiDualConfig(mode=mode))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    classifier = ZeroShotClassifier.from_text(
        model,
        backbone.tokenizer,
        ["cat", "dog", "owl"],
        ["a {}."],
        image_processor=backbone.image_processor,
    )
    classifier.save_pretrained(root / name)
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converting")
    save_clip(folder / "model")
    save_clip(folder / "copy")
    photos(folder / "photos", count=2)
    return folder


def test_a_merged_adapter_says_the_same_without_us(root, tmp_path, monkeypatch, capsys) -> None:
    adapter = saved(root, "stream", "stream")
    out = tmp_path / "merged"
    assert stop(monkeypatch, "merge", str(adapter), "--out", str(out)) == 0
    assert str(out) in capsys.readouterr().out
    plain = AutoModel.from_pretrained(out)
    assert type(plain) is CLIPModel
    before = CLIPModel.from_pretrained(root / "model").state_dict()
    changed = [n for n, value in plain.state_dict().items() if not value.equal(before[n])]
    assert changed
    assert all("self_attn.out_proj" in n or "mlp.fc2" in n for n in changed)
    images = sorted((root / "photos").rglob("*.png"))
    expected = ZeroShotClassifier.from_pretrained(adapter).predict_logits(images)
    found = ZeroShotClassifier.from_pretrained(out)
    torch.testing.assert_close(found.predict_logits(images), expected, rtol=1e-4, atol=1e-4)
    assert not (out / "adapter_config.json").exists()
    assert stop(monkeypatch, "predict", str(out), str(images[0])) == 0


def test_what_cannot_be_merged_is_told_and_nothing_is_written(root, tmp_path) -> None:
    adapter = saved(root, "readout", "readout")
    with pytest.raises(ResiDualError, match="an adapter in readout mode cannot be merged"):
        merge_adapter(adapter, tmp_path / "merged")
    backbone = load_backbone(root / "model")
    plain = ZeroShotClassifier.from_text(backbone.model, backbone.tokenizer, ["cat", "dog"])
    plain.save_pretrained(root / "plain")
    with pytest.raises(ResiDualError, match=r"wanted an adapter to merge, got .* without one"):
        merge_adapter(root / "plain", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_class_head_is_not_left_behind_without_a_word(root, tmp_path) -> None:
    classifier = ZeroShotClassifier.from_pretrained(saved(root, "gains", "readout"))
    width = classifier.class_embeddings.shape[1]
    zeros, ones = torch.zeros(width), torch.ones(width)
    head = ClassHead(zeros, ones, torch.ones(width, 3), torch.zeros(3), 1.0, 1.0)
    classifier.head = TrainedHead(head, "embedding")
    classifier.save_pretrained(root / "head")
    with pytest.raises(ResiDualError, match="has a class head beside its gains"):
        adapter_for(root / "head", str(root / "copy"), tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def _as_open_clip_saves(model: Any, folder: Path) -> None:
    """A folder that open_clip loads with `local-dir:`."""
    size, names = Size(), ("context_length", "vocab_size", "width", "heads", "layers")
    text = dict(zip(names, (16, VOCABULARY, 16, 2, 1), strict=True))
    vision = {"layers": size.layers, "width": size.width, "head_width": size.width // size.heads}
    vision |= {"patch_size": size.patch, "image_size": size.image}
    config = {"embed_dim": size.readout, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def test_from_a_fit_to_open_clip_and_back_on_the_command_line(
    root, tmp_path, monkeypatch, capsys
) -> None:
    """The gains that `fit` found on transformers' copy do the same in open_clip's, and again."""
    from tests.open_clip_models import open_clip_model

    clip = open_clip_model(text={"vocab_size": VOCABULARY})
    _as_open_clip_saves(clip, tmp_path / "open")
    copy = tmp_path / "copy"
    save_clip(copy)  # its tokenizer and image processor
    open_clip_to_transformers(clip).save_pretrained(copy)
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", count=12)
    fit = ("fit", "--model", str(copy), "--data", "photos", "--method", "gains", "--no-report")
    assert stop(monkeypatch, *fit, "--template", "a {}.", "--out", "adapter") == 0
    to, back = ("--model", "open_clip:local-dir:open"), ("--model", str(copy))
    assert stop(monkeypatch, "convert", "adapter", *to, "--out", "there") == 0
    assert "for open_clip:local-dir:open is in there" in capsys.readouterr().out
    assert stop(monkeypatch, "convert", "there", *back, "--out", "back") == 0
    import open_clip

    loaded = open_clip.create_model("local-dir:open").eval()
    wanted = ZeroShotClassifier.from_pretrained("adapter").model.eval()
    one = load_adapter(loaded, "there")
    other = load_adapter(load_backbone(copy).model, "back")
    plain = run_tower(load_backbone(copy).model, pixels())
    for found in (one, other):
        assert relative(run_tower(found, pixels()), run_tower(wanted, pixels())) < 3e-6
    assert relative(run_tower(one, pixels()), plain) > 1e-3
    named = "open_clip:ViT-B-32/no-such-weights"
    assert stop(monkeypatch, "convert", "adapter", "--model", named, "--out", "none") == 2
    assert (
        "open_clip did not give 'open_clip:ViT-B-32/no-such-weights' (" in capsys.readouterr().err
    )


def test_a_converted_adapter_is_for_the_other_copy(root, tmp_path, monkeypatch, capsys) -> None:
    adapter = saved(root, "readout", "readout")
    out, copy = tmp_path / "other", str(root / "copy")
    assert stop(monkeypatch, "convert", str(adapter), "--model", copy, "--out", str(out)) == 0
    assert f"is in {out}, without its classes" in capsys.readouterr().out
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == copy
    gains = gains_by_module(ZeroShotClassifier.from_pretrained(adapter).model)
    assert gains
    for name, message in (("open_clip:no-such/model", "open_clip"), ("nobody", "nobody")):
        with pytest.raises(ResiDualError, match=message):
            adapter_for(adapter, name, tmp_path / "none")
    assert not (tmp_path / "none").exists()
