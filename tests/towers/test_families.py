"""What users do with towers beside CLIP's: class names as texts, images alone, the Trainer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from peft import get_peft_model
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional
from transformers import SiglipTextModel, Trainer

from residual_peft import (
    ResiDualConfig,
    TaskSet,
    ZeroShotClassifier,
    collect_coordinates,
    evaluate,
    fit_bases,
    gains_of,
    load_data,
    trainer_kwargs,
    training_arguments,
)
from residual_peft.classifiers.outputs import readout_of
from residual_peft.classifiers.prompts import embed_classes
from residual_peft.data import batches
from residual_peft.errors import ResiDualError
from residual_peft.solvers.training import LogitsForMetrics
from residual_peft.towers.registry import find_tower
from residual_peft.towers.running import run_tower
from tests.dual_encoders import BUILDERS, CONTEXT, processor
from tests.models import TOWERS, pixels
from tests.pairs import table
from tests.pooled import double, patches
from tests.tokenizers import clip_tokenizer
from tests.tuner.twin import randomize_gains, relative

pytestmark = pytest.mark.usefixtures("one_tokenizer")
NAMES = ("cat", "green dog", "bird")
TEMPLATES = ("a photo of a {}.", "the {}")


def given(name: str, count: int = 5) -> dict[str, Tensor]:
    """What a model takes of images."""
    return patches(count) if name == "Siglip2Model" else {"pixel_values": pixels(count)}


def prompts(name: str) -> dict[str, Tensor]:
    """The tokens of "a cat", "a dog" as the model's own users would prepare them."""
    texts = [f"a {word}" for word in NAMES]
    tokenizer = clip_tokenizer()
    if name.startswith("Siglip"):  # as its processor: all as long as in training, no mask
        ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt")
        return {"input_ids": ids["input_ids"]}
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


@table("name", BUILDERS)
def test_logits_are_the_model_s_own(name: str) -> None:
    model, batch = BUILDERS[name]().double(), double(given(name))
    classifier = ZeroShotClassifier.from_text(model, clip_tokenizer(), NAMES, "a {}")
    found = classifier.logits(run_tower(model, batch))
    if name == "BlipForImageTextRetrieval":
        own = model(**prompts(name), **batch, use_itm_head=False).itm_score
        wanted = 100 * own  # it has no scale of its own
    elif name == "CLIPSegModel":
        images = model.get_image_features(**batch).pooler_output
        texts = model.get_text_features(**prompts(name)).pooler_output
        cosines = functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
        wanted = model.logit_scale.exp() * cosines
    else:
        wanted = model(**prompts(name), **batch).logits_per_image
        wanted = wanted - getattr(model, "logit_bias", torch.zeros(1).double())
    assert relative(found, wanted) < 1e-8
    assert classifier.logit_bias == 0


@pytest.mark.parametrize("name", ["SiglipModel", "Siglip2Model"])
def test_several_labels_use_the_model_s_own_sigmoid(name: str, tmp_path: Path) -> None:
    model, batch = BUILDERS[name]().double(), double(given(name))
    classifier = ZeroShotClassifier.from_text(
        model, clip_tokenizer(), NAMES, "a {}", multi_label=True
    )
    wanted = model(**prompts(name), **batch).logits_per_image
    assert relative(classifier.logits(run_tower(model, batch)), wanted) < 1e-8
    assert abs(classifier.logit_bias) > 1e-2
    labels = torch.eye(3)[[0, 1, 2, 0, 1]]
    torch.testing.assert_close(
        classifier.loss(run_tower(model, batch), labels),
        functional.binary_cross_entropy_with_logits(wanted, labels.double()),
    )
    classifier.save_pretrained(tmp_path)
    loaded = ZeroShotClassifier.from_pretrained(tmp_path, model=model)
    assert loaded.logit_bias == classifier.logit_bias
    given_one = ZeroShotClassifier.from_text(
        model, clip_tokenizer(), NAMES, multi_label=True, logit_bias=-3.0
    )
    assert given_one.logit_bias == -3.0


def test_siglip_s_text_tower_alone_embeds_classes() -> None:
    model = BUILDERS["SiglipModel"]()
    alone = SiglipTextModel(model.config.text_config)
    alone.load_state_dict(model.text_model.state_dict())
    found = ZeroShotClassifier.from_text(model, clip_tokenizer(), NAMES, text_model=alone.eval())
    wanted = ZeroShotClassifier.from_text(model, clip_tokenizer(), NAMES)
    torch.testing.assert_close(found.class_embeddings, wanted.class_embeddings)


def test_siglip_s_texts_are_padded_on_the_tokenizer_s_side() -> None:
    model, tokenizer = BUILDERS["SiglipModel"](), clip_tokenizer()
    tokenizer.padding_side = "left"
    found = embed_classes(model, tokenizer, NAMES, "a {}")
    texts = [f"a {word}" for word in NAMES]
    ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt")
    assert ids["input_ids"][0, 0] == tokenizer.pad_token_id
    wanted = model.get_text_features(input_ids=ids["input_ids"]).pooler_output
    torch.testing.assert_close(found, functional.normalize(wanted, dim=1))
    assert relative(embed_classes(model, clip_tokenizer(), NAMES, "a {}"), found) > 1e-3


def test_a_prompt_longer_than_roberta_s_positions_is_refused() -> None:
    model = BUILDERS["AltCLIPModel"]()
    room = CONTEXT - model.config.text_config.pad_token_id - 1
    fits = embed_classes(model, clip_tokenizer(), ["a" * (room - 2), "b"], "{}")
    assert fits.isfinite().all()
    with pytest.raises(ResiDualError, match=f"the text tower reads at most {room}"):
        embed_classes(model, clip_tokenizer(), ["a" * (room - 1), "b"], "{}")


def test_a_mean_is_read_from_an_output_with_texts_too() -> None:
    model = get_peft_model(BUILDERS["SiglipModel"](), ResiDualConfig(readout="mean"))
    randomize_gains(model)
    output = model(**given("SiglipModel"), **prompts("SiglipModel"))
    assert relative(readout_of(output, model), run_tower(model, given("SiglipModel"))) < 1e-6


@table("name", BUILDERS)
def test_class_embeddings_are_means_over_templates(name: str) -> None:
    model = BUILDERS[name]().double()
    found = embed_classes(model, clip_tokenizer(), NAMES, TEMPLATES)
    for row, word in enumerate(NAMES):
        alone = [
            embed_classes(model, clip_tokenizer(), [word, "other"], template)[0]
            for template in TEMPLATES
        ]
        torch.testing.assert_close(found[row], functional.normalize(sum(alone), dim=0))


@table("name", BUILDERS)
def test_an_adapted_dual_encoder_takes_images_alone(name: str) -> None:
    batch = given(name)
    model = get_peft_model(BUILDERS[name](), ResiDualConfig())
    fit_bases(model, [given(name, 60)])
    randomize_gains(model)
    found = model(**batch)
    assert torch.equal(found.image_embeds, run_tower(model, batch))
    with model.disable_adapter():
        assert relative(found.image_embeds, run_tower(model, batch)) > 1e-3
    bare = model.unload()
    with pytest.raises((ValueError, TypeError, AttributeError)):
        bare(**batch)


@pytest.mark.parametrize("name", ["SiglipModel", "Siglip2Model"])
def test_images_alone_give_the_mean_that_is_adapted(name: str) -> None:
    batch = given(name)
    model = get_peft_model(BUILDERS[name](), ResiDualConfig(readout="mean"))
    fit_bases(model, [given(name, 60)])
    randomize_gains(model)
    found = model(**batch).image_embeds
    assert torch.equal(found, run_tower(model, batch))
    tokens = model.get_base_model().vision_model(**batch).last_hidden_state
    mask = batch.get("pixel_attention_mask", torch.ones(tokens.shape[:2])).bool()
    wanted = [row[kept].mean(0) for row, kept in zip(tokens, mask, strict=True)]
    assert relative(found, torch.stack(wanted)) < 1e-6


def photos(count: int = 24) -> Dataset:
    """Squares of three colours, of all shapes."""
    generator = np.random.default_rng(0)
    images, labels = [], []
    for index in range(count):
        height, width = generator.integers(12, 40, 2)
        array = generator.integers(0, 90, (height, width, 3))
        array[..., index % 3] += 150
        images.append(Pillow.fromarray(array.astype(np.uint8)))
        labels.append(index % 3)
    features = Features({"image": Image(), "label": ClassLabel(names=list(NAMES))})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_naflex_images_go_all_the_way() -> None:
    """Images of all shapes: patches, masks and shapes reach the model from every door."""
    data, prepare = photos(), processor("Siglip2Model")
    model = get_peft_model(BUILDERS["Siglip2Model"](), ResiDualConfig(components=8))
    loader = batches(data, prepare, batch_size=10)
    first = next(iter(loader))
    taken = {"pixel_values", "pixel_attention_mask", "spatial_shapes"}
    assert set(first) == taken | {"labels", "index"}
    assert len(first["spatial_shapes"].unique(dim=0)) > 2
    assert not first["pixel_attention_mask"].all()
    fit_bases(model, loader)
    randomize_gains(model)
    classifier = ZeroShotClassifier.from_text(
        model, clip_tokenizer(), NAMES, image_processor=prepare
    )
    coordinates = collect_coordinates(model, loader)
    wanted = classifier.logits(coordinates.adapted(gains_of(model)))
    result = evaluate(classifier, data, batch_size=7)
    assert relative(result.logits, wanted) < 1e-5
    one_by_one = [classifier.predict(row["image"]) for row in data]
    assert [p.label for p in one_by_one] == [NAMES[i] for i in wanted.argmax(1).tolist()]
    tasks = TaskSet(classifier.model, image_processor=prepare)
    tasks.add("colours", classifier)
    found = tasks.predict([row["image"] for row in data], batch_size=5)["colours"]
    assert [p.label for p in found] == [p.label for p in one_by_one]


def test_metrics_read_a_token_and_not_what_a_pooler_makes_of_it() -> None:
    model = TOWERS["ViTModel"]()
    classifier = ZeroShotClassifier(model, NAMES, functional.normalize(torch.randn(3, 24), dim=1))
    output = model(pixel_values=pixels())
    assert output.pooler_output.shape == (5, 24)
    found = LogitsForMetrics(classifier)(output.to_tuple())
    assert torch.equal(found, classifier.logits(output.last_hidden_state[:, 0]))


@pytest.mark.parametrize("name", ["SiglipModel", "Dinov2Model", "BlipForImageTextRetrieval"])
def test_the_trainer_trains_the_gains(name: str, tmp_path: Path) -> None:
    base = TOWERS[name]() if name in TOWERS else BUILDERS[name]()
    prepare = processor(name)
    data = load_data(photos(48), test=0.25)
    model = get_peft_model(base, ResiDualConfig())
    loader = batches(data.train, prepare)
    fit_bases(model, loader)
    if name == "Dinov2Model":
        classifier = ZeroShotClassifier.from_class_means(
            model, loader, NAMES, image_processor=prepare, logit_scale=3.0
        )
    else:
        classifier = ZeroShotClassifier.from_text(
            model, clip_tokenizer(), NAMES, image_processor=prepare
        )
    coordinates = collect_coordinates(model, loader)
    gains = gains_of(model)
    before = classifier.loss(coordinates.adapted(gains), coordinates.labels)
    before.backward()
    wanted, gains.grad = gains.grad, None
    batch = next(iter(loader))
    labels = batch.pop("labels")
    classifier.loss(model(**batch), labels).backward()
    torch.testing.assert_close(gains.grad, wanted, rtol=1e-3, atol=1e-5)
    arguments = training_arguments(tmp_path, num_train_epochs=6, disable_tqdm=True)
    Trainer(**trainer_kwargs(classifier, data, arguments)).train()
    after = classifier.loss(coordinates.adapted(gains), coordinates.labels)
    assert float(after) < 0.96 * float(before)
    assert find_tower(model).architecture == name
