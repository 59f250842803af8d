import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import CLIPProcessor, CLIPTextModelWithProjection

from residual_peft.classifiers.outputs import readout_of
from residual_peft.classifiers.prompts import embed_classes
from residual_peft.classifiers.zero_shot import Prediction, ZeroShotClassifier
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from tests.models import (
    Size,
    clip_model,
    clip_vision_model,
    clip_vision_model_with_projection,
    pixels,
    randomize,
    text_config,
)
from tests.pairs import table
from tests.pictures import agree, image_processor, photographs
from tests.tokenizers import VOCABULARY, clip_tokenizer

NAMES, TEMPLATES = ("cat", "dog", "bird"), ("a {}.", "no {}")


def classifier(model=None, **options):
    model = clip_model(vocab_size=VOCABULARY) if model is None else model
    options = {"image_processor": image_processor()} | options
    return ZeroShotClassifier.from_text(model, clip_tokenizer(), NAMES, TEMPLATES, **options)


def lora(model):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


def test_logits_are_those_of_the_dual_encoder_itself():
    model, tokenizer = clip_model(vocab_size=VOCABULARY), clip_tokenizer()
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
    made = ZeroShotClassifier.from_text(model, tokenizer, NAMES, "a {}.")
    texts = tokenizer([f"a {name}." for name in NAMES], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels(), **texts).logits_per_image
        measured = made.logits(run_tower(model, pixels()))
    torch.testing.assert_close(measured, expected)


def test_readouts_count_by_direction_only_and_in_any_output():
    made, readout = classifier(), torch.randn(4, 16)
    expected = made.logits(readout)
    assert expected.shape == (4, 3)
    unit = functional.normalize(readout, dim=-1)
    for outputs in (
        unit,
        {"image_embeds": readout},
        SimpleNamespace(image_embeds=3 * readout),
        SimpleNamespace(image_embeds=None, pooler_output=unit),
    ):
        torch.testing.assert_close(made.logits(outputs), expected)
    half = made.logits(readout.to(torch.bfloat16))
    assert half.dtype == torch.float32
    assert made.logits(readout.double()).dtype == torch.float64
    with pytest.raises(ResiDualError, match="wanted a model output with image_embeds"):
        readout_of(SimpleNamespace(image_embeds=None))


def test_the_loss_is_the_mean_over_all_items():
    made, labels = classifier(), torch.tensor([0, 2, 1, 1])
    readout = torch.randn(4, 16, dtype=torch.float64)
    unit = readout / readout.norm(dim=1, keepdim=True)
    logits = made.logit_scale * unit @ made.class_embeddings.double().T
    slow = -sum(logits[i, y] - logits[i].exp().sum().log() for i, y in enumerate(labels)) / 4
    torch.testing.assert_close(made.loss(readout, labels), slow)
    parts = [
        made.loss(readout[s], labels[s], num_items_in_batch=torch.tensor(4))
        for s in (slice(0, 3), slice(3, 4))
    ]
    torch.testing.assert_close(sum(parts), slow)
    torch.testing.assert_close(made.loss(readout, labels, 8), slow / 2)


@table("label", [-1, 3, -100])
def test_labels_outside_the_classes_are_refused(label):
    with pytest.raises(ResiDualError, match=rf"from 0 to 2 \(3 classes\), got {label} for image 1"):
        classifier().loss(torch.randn(2, 16), torch.tensor([0, label]))


def test_missing_labels_are_refused():
    with pytest.raises(ResiDualError, match="label_names="):
        classifier().loss(torch.randn(2, 16), None)


def test_separate_towers_work_and_need_a_text_tower():
    vision = clip_vision_model_with_projection()
    with pytest.raises(ResiDualError, match="CLIPVisionModelWithProjection has no text tower"):
        classifier(vision)
    text = randomize(CLIPTextModelWithProjection(text_config(Size(), VOCABULARY)), 4)
    made = classifier(vision, text_model=text)
    assert made.logit_scale == 100.0
    assert classifier(vision, text_model=text, logit_scale=7.0).logit_scale == 7.0
    torch.testing.assert_close(
        made.class_embeddings, embed_classes(text, clip_tokenizer(), NAMES, TEMPLATES)
    )
    with torch.no_grad():
        expected = vision(pixel_values=pixels()).image_embeds
    torch.testing.assert_close(run_tower(vision, pixels()), expected)


def test_class_embeddings_are_normalized_once():
    rows = 3 * torch.randn(3, 16)
    made = ZeroShotClassifier(clip_model(vocab_size=VOCABULARY), NAMES, rows)
    torch.testing.assert_close(made.class_embeddings, functional.normalize(rows, dim=-1))
    again = ZeroShotClassifier(made.model, NAMES, made.class_embeddings)
    assert torch.equal(again.class_embeddings, made.class_embeddings)


def test_towers_of_different_width_are_refused():
    text = randomize(CLIPTextModelWithProjection(text_config(Size(), VOCABULARY)), 4)
    with pytest.raises(ResiDualError, match=r"shape \(3, 24\).*got \(3, 16\)"):
        classifier(clip_vision_model(), text_model=text)


def test_predictions_of_one_and_of_many():
    made, images = classifier(), photographs()
    values = made.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = made.logits(run_tower(made.model, values)).softmax(-1)
    many = made.predict(images, batch_size=2)
    assert [p.index for p in many] == expected.argmax(-1).tolist()
    one = made.predict(images[0])
    assert isinstance(one, Prediction)
    assert one.label == NAMES[one.index]
    np.testing.assert_allclose([p.probabilities for p in many], expected, atol=1e-6)
    assert one.score == pytest.approx(max(one.probabilities))


def test_images_of_every_kind_give_the_same_prediction(tmp_path):
    made, image = classifier(), photographs(1)[0]
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.tensor(array).permute(2, 0, 1)
    expected = made.predict(image)
    for same in (tmp_path / "a.png", array, tensor, tensor / 255):
        assert agree(made.predict(same), expected)
    for batch in (
        [image, str(tmp_path / "a.png")],
        np.stack([array] * 2),
        torch.stack([tensor] * 2),
    ):
        many = made.predict(batch)
        assert [p.index for p in many] == [expected.index] * 2
        np.testing.assert_allclose(many[1].probabilities, expected.probabilities, atol=1e-6)


def test_prediction_leaves_the_training_mode_as_it_was():
    made = classifier()
    made.model.train()
    made.predict(photographs(2))
    assert made.model.training
    with pytest.raises(ResiDualError, match=r"'absent\.png'"):
        made.predict("absent.png")
    assert made.model.training


def test_bad_images_and_a_missing_processor_are_refused(tmp_path):
    made = classifier()
    with pytest.raises(ResiDualError, match="at least one image to classify"):
        made.predict([])
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(ResiDualError, match=r"could not read '.*b\.png'"):
        made.predict([photographs(1)[0], tmp_path / "b.png"])
    with pytest.raises(ResiDualError, match="image 1 has NaN or infinite pixels"):
        made.predict([photographs(1)[0], np.full((4, 4), np.inf)])
    with pytest.raises(ResiDualError, match="has no image processor"):
        classifier(image_processor=None).predict(photographs(1))


def test_a_processor_brings_tokenizer_and_image_processor():
    model = clip_model(vocab_size=VOCABULARY)
    processor = CLIPProcessor(image_processor(), clip_tokenizer())
    made = ZeroShotClassifier.from_text(model, processor, NAMES, TEMPLATES)
    assert agree(made.predict(photographs(2)), classifier(model).predict(photographs(2)))


def saved_base(tmp_path, dtype=torch.float32):
    base = clip_model(vocab_size=VOCABULARY).to(torch.float16)
    base.save_pretrained(tmp_path / "base")
    return type(base).from_pretrained(tmp_path / "base", dtype=dtype)


def test_one_call_loads_base_adapter_classes_and_processor(tmp_path):
    made = classifier(lora(saved_base(tmp_path)))
    made.save_pretrained(tmp_path / "adapter")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "adapter")
    assert (loaded.class_names, loaded.templates) == (NAMES, TEMPLATES)
    assert next(loaded.model.parameters()).dtype == torch.float32
    torch.testing.assert_close(loaded.class_embeddings, made.class_embeddings, atol=0, rtol=0)
    made.model.eval()
    assert agree(loaded.predict(photographs()), made.predict(photographs()))
    with made.model.disable_adapter():
        assert not agree(loaded.predict(photographs()), made.predict(photographs()))
    loaded.save_pretrained(tmp_path / "again")
    record = json.loads((tmp_path / "again" / "residual_classifier.json").read_text())
    assert record["base_model"] == str(tmp_path / "base")


def test_the_base_model_keeps_its_hub_name(tmp_path, monkeypatch):
    base = saved_base(tmp_path)
    base.config._name_or_path = "me/clip"
    classifier(lora(base)).save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(
        "residual_peft.classifiers.backbones.model_directory",
        lambda name, **options: tmp_path / "base" if name == "me/clip" else name,
    )
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "adapter")
    loaded.save_pretrained(tmp_path / "again")
    record = json.loads((tmp_path / "again" / "residual_classifier.json").read_text())
    assert record["base_model"] == "me/clip"


def test_the_bundled_model_goes_by_its_name(tmp_path, monkeypatch):
    base = saved_base(tmp_path)
    monkeypatch.setattr("residual_peft.hub.directories.BUNDLED_DIRECTORY", tmp_path / "base")
    made = classifier(lora(base))
    made.save_pretrained(tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "residual_classifier.json").read_text())
    assert record["base_model"] == "residual_peft/demo-clip"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")  # PEFT finds it by that
    made.model.eval()
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "adapter")
    assert agree(loaded.predict(photographs()), made.predict(photographs()))


def test_a_given_base_model_is_used_instead_of_a_missing_one(tmp_path):
    made = classifier(lora(saved_base(tmp_path)))
    made.save_pretrained(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "base")
    base = saved_base(tmp_path / "moved")
    with pytest.raises(ResiDualError, match="could not find the base model"):
        ZeroShotClassifier.from_pretrained(tmp_path / "adapter")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "adapter", model=base)
    made.model.eval()
    assert agree(loaded.predict(photographs()), made.predict(photographs()))


def test_a_classifier_without_an_adapter_is_saved_too(tmp_path):
    made = classifier(saved_base(tmp_path))
    made.save_pretrained(tmp_path / "classes")
    assert not (tmp_path / "classes" / "adapter_config.json").exists()
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "classes")
    assert agree(loaded.predict(photographs()), made.predict(photographs()))


def test_a_card_that_is_there_is_kept(tmp_path):
    made = classifier(lora(saved_base(tmp_path)))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    made.save_pretrained(tmp_path / "adapter")
    assert "My own words." in (tmp_path / "adapter" / "README.md").read_text()


@table(
    ("file", "content", "message"),
    [
        ("residual_classifier.json", None, "it holds no classes"),
        ("residual_classifier.json", b'{"class_names": ["a"', "not JSON"),
        (
            "residual_classifier.json",
            b'{"class_names": ["a", "b"]}',
            "field templates: want",
        ),
        ("residual_classifier.safetensors", None, "safetensors', which is missing"),
        ("residual_classifier.safetensors", b"short", "not a whole safetensors file"),
        ("adapter_config.json", None, r"adapter_config\.json', which is missing"),
        ("adapter_model.safetensors", None, r"adapter_model\.safetensors', which is missing"),
        ("adapter_model.safetensors", b"cut", "not a whole safetensors file"),
        ("preprocessor_config.json", b"{}", "wanted an image processor in"),
    ],
)
def test_broken_adapter_directories_are_refused(tmp_path, file, content, message):
    classifier(lora(saved_base(tmp_path))).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ResiDualError, match=message):
        ZeroShotClassifier.from_pretrained(tmp_path / "adapter")


def test_an_unknown_directory_says_what_could_not_be_reached(tmp_path):
    with pytest.raises(ResiDualError, match="could not find the adapter 'nobody/nothing'"):
        ZeroShotClassifier.from_pretrained("nobody/nothing")
    (tmp_path / "photos").mkdir()
    with pytest.raises(ResiDualError, match=r"photos' holds no adapter: it has neither .* Name"):
        ZeroShotClassifier.from_pretrained(tmp_path / "photos")
