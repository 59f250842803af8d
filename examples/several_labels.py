"""Several labels per image: a sigmoid for each class, fitted from one pass over the images.

    python examples/several_labels.py

Images of the bundled model's world are labelled with what they show: a colour, and a shape where
there is one. A column of lists of names is all that `load_data` needs.
"""

import argparse
import warnings

import torch
from datasets import Dataset
from peft import get_peft_model
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from residual_peft import (
    Objective,
    ResiDualConfig,
    ZeroShotClassifier,
    collect_coordinates,
    collect_with_basis,
    evaluate,
    load_data,
    solve_gains,
    strength_path,
)
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.demo.drawing import draw
from residual_peft.demo.world import ATTRIBUTES, sample_scenes


def world(count: int) -> Dataset:
    """Images with a list of names each, such as ["red", "star"], or ["blue"] for a digit."""
    generator = torch.Generator().manual_seed(4 * 10**9)
    scene = sample_scenes(count, generator)
    arrays = draw(scene, generator).permute(0, 2, 3, 1).numpy()
    shown = zip(scene.values["color"].tolist(), scene.values["shape"].tolist(), strict=True)
    labels = [
        [ATTRIBUTES["color"][color]] + ([ATTRIBUTES["shape"][shape]] if shape >= 0 else [])
        for color, shape in shown
    ]
    return Dataset.from_dict({"image": [Image.fromarray(a) for a in arrays], "label": labels})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    data = load_data(world(options.images), validation=0.2, test=0.2)
    clip = load_backbone()
    model = get_peft_model(clip.model, ResiDualConfig())
    classifier = ZeroShotClassifier.from_text(
        model,
        clip.tokenizer,
        data.class_names,
        ["something {}", "an image of something {}"],
        image_processor=clip.image_processor,
        multi_label=data.multi_label,
    )
    train = collect_with_basis(model, batches(data.train, clip.image_processor))
    held_out = collect_coordinates(model, batches(data.validation, clip.image_processor))
    classifier.fit_bias(train.readout, train.labels)  # a fair start: cosines are not around 0
    before = evaluate(classifier, data.test).metrics

    strength = strength_path(classifier, train, held_out).best
    solve_gains(
        classifier, train, objective=Objective(normalized=False, loss="sigmoid", strength=strength)
    )
    after = evaluate(classifier, data.test).metrics
    print(f"{len(data.class_names)} classes, {len(data.train)} images to learn from")
    for name in ("mean_average_precision", "micro_f1", "exact_match"):
        print(f"{name}: {before[name]:.3f} -> {after[name]:.3f}")
    image = data.test[0]["image"]
    print(f"the first test image: {', '.join(classifier.predict(image).labels)}")


if __name__ == "__main__":
    main()
