"""One CLIP, two adapters side by side: set_adapter picks one, disable_adapter none.

    python examples/two_adapters.py

One adapter is fitted to handwritten digits, the other to the same digits upside down. Both read the
same basis, which is fitted once and held once, so that the second costs its gains alone.
"""

import argparse
import tempfile
import warnings

from datasets import Dataset, disable_progress_bars
from peft import get_peft_model
from PIL.Image import Transpose
from transformers.utils.logging import disable_progress_bar

from residual_peft import (
    ResiDualConfig,
    SpectralBasis,
    ZeroShotClassifier,
    collect_coordinates,
    evaluate,
    fit_gains,
)
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting


def turned(images: Dataset) -> Dataset:
    """The same images upside down."""
    return images.map(lambda row: {"image": row["image"].transpose(Transpose.ROTATE_180)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300, help="images to fit each adapter to")
    options = parser.parse_args()
    disable_progress_bar()
    disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    digits = handwriting()
    train = digits["train"].select(range(options.images))
    test = digits["test"].select(range(200))

    clip = load_backbone()
    with tempfile.TemporaryDirectory() as basis:
        images = batches(train, clip.image_processor)
        SpectralBasis.fit(clip.model, images).save_pretrained(basis)
        config = ResiDualConfig(basis=basis)
        model = get_peft_model(clip.model, config, adapter_name="upright")
        model.add_adapter("upside down", config)
    classifier = ZeroShotClassifier.from_text(
        model,
        clip.tokenizer,
        test.features["label"].names,
        HANDWRITING_TEMPLATES,
        image_processor=clip.image_processor,
    )
    for adapter, images in {"upright": train, "upside down": turned(train)}.items():
        model.set_adapter(adapter)
        coordinates = collect_coordinates(model, batches(images, clip.image_processor))
        fit_gains(classifier, coordinates)

    for name, images in {"upright": test, "upside down": turned(test)}.items():
        with model.disable_adapter():
            scores = {"no adapter": evaluate(classifier, images).metrics["accuracy"]}
        for adapter in ("upright", "upside down"):
            model.set_adapter(adapter)
            scores[adapter] = evaluate(classifier, images).metrics["accuracy"]
        shown = ", ".join(f"{adapter} {score:.3f}" for adapter, score in scores.items())
        print(f"digits {name}: {shown}")


if __name__ == "__main__":
    main()
