"""transformers' own pipeline runs on the adapted model and says what our evaluation says."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import CLIPImageProcessorPil, pipeline

from residual_peft import ResiDualConfig, ZeroShotClassifier, evaluate, gains_of, load_data
from tests.models import clip_model
from tests.tokenizers import VOCABULARY, clip_tokenizer

NAMES = ("big_dog", "bird", "cat")
TASK = "zero-shot-image-classification"


@pytest.fixture(scope="module")
def classifier():
    model = get_peft_model(clip_model(vocab_size=VOCABULARY), ResiDualConfig())
    gains = gains_of(model)
    with torch.no_grad():
        gains.copy_(1 + torch.randn(gains.shape, generator=torch.Generator().manual_seed(3)))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return ZeroShotClassifier.from_text(
        model.eval(), clip_tokenizer(), NAMES, ["a {}."], image_processor=processor
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of every kind that a folder may hold, as files: both sides read them by themselves."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(9):
        folder = root / NAMES[index % 3]
        folder.mkdir(exist_ok=True)
        mode = ("RGB", "L", "P")[index // 3]
        pixels = generator.integers(0, 256, (20 + index, 26, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{index}.png")
    return load_data(root, validation=0, test=0)


@pytest.mark.parametrize("wrapped", [True, False], ids=["PeftModel", "its base model"])
def test_the_pipeline_gives_the_scores_of_our_evaluation(classifier, data, wrapped):
    model = classifier.model if wrapped else classifier.model.get_base_model()
    classify = pipeline(
        TASK, model=model, tokenizer=clip_tokenizer(), image_processor=classifier.image_processor
    )
    labels = [name.replace("_", " ") for name in classifier.class_names]
    answers = classify(
        list(data.train["image"]), candidate_labels=labels, hypothesis_template="a {}."
    )
    theirs = [[{a["label"]: a["score"] for a in row}[label] for label in labels] for row in answers]
    assert data.class_names == NAMES
    np.testing.assert_allclose(
        theirs, evaluate(classifier, data.train).logits.softmax(-1), atol=1e-5
    )
    with classifier.model.disable_adapter():
        unadapted = evaluate(classifier, data.train).logits.softmax(-1)
    assert np.abs(theirs - unadapted.numpy()).max() > 0.01
