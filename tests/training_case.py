"""A tiny task that training can move: images of three brightnesses, a random CLIP, an adapter."""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peft import get_peft_model
from PIL import Image

import residual_peft.tuner  # noqa: F401  registers the method with PEFT
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import ImageData, ProcessedImages, batches, load_data
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.tuner import ResiDualConfig
from tests.models import clip_model
from tests.pictures import image_processor
from tests.tokenizers import VOCABULARY, clip_tokenizer

NAMES = ("dark", "grey", "light")


def task(count: int = 60, seed: int = 0) -> ImageData:
    generator = np.random.default_rng(seed)
    labels = [i % 3 for i in range(count)]
    noise = generator.integers(-60, 60, (count, 16, 16, 3))
    images = [
        Image.fromarray(np.clip(60 + 65 * y + n, 0, 255).astype(np.uint8))
        for y, n in zip(labels, noise, strict=True)
    ]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(NAMES))})
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    return load_data(dataset, validation=0.2, test=0.2, seed=0)


def adapted_classifier(config: ResiDualConfig | None = None, model=None) -> ZeroShotClassifier:
    model = clip_model(vocab_size=VOCABULARY) if model is None else model
    text = clip_model(vocab_size=VOCABULARY)
    return ZeroShotClassifier.from_text(
        get_peft_model(model, config or ResiDualConfig()),
        clip_tokenizer(),
        NAMES,
        "a {}.",
        text_model=text,
        logit_scale=10.0,
        image_processor=image_processor(),
    )


def save_clip(folder, size: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
    """A tiny CLIP with its tokenizer and an image processor for images of `size` pixels."""
    clip_model(vocab_size=VOCABULARY, seed=seed).to(dtype).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    image_processor(size).save_pretrained(folder)


def passed(classifier, split="train"):
    loader = batches(task()[split], classifier.image_processor, batch_size=16)
    return collect_coordinates(classifier.model, loader)


def images(classifier, split="train"):
    return ProcessedImages(task()[split], classifier.image_processor, split)


class Killed(Exception):
    pass
