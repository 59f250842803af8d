"""One pass over the images, then seconds: gains fitted from coordinates, as often as you like.

    python examples/fit_from_coordinates.py

The adapted readout is affine in the gains, so what they multiply is computed once and kept. Here
three learning rates are tried for the price of one pass, and the validation images choose.
"""

import argparse
import time
import warnings

import torch
from peft import get_peft_model
from transformers.utils.logging import disable_progress_bar

from residual_peft import (
    ResiDualConfig,
    ZeroShotClassifier,
    collect_coordinates,
    evaluate,
    fit_bases,
    fit_gains,
    gains_of,
    load_data,
)
from residual_peft.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting
from residual_peft.tuner import restart_gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.03, 0.1, 0.8])
    parser.add_argument("--images", type=int, default=500, help="training images to use")
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    digits = handwriting()
    digits["train"] = digits["train"].select(range(options.images))
    digits["test"] = digits["test"].select(range(200))
    data = load_data(digits)
    clip = load_backbone()
    model = get_peft_model(clip.model, ResiDualConfig())
    classifier = ZeroShotClassifier.from_text(
        model,
        clip.tokenizer,
        data.class_names,
        HANDWRITING_TEMPLATES,
        image_processor=clip.image_processor,
    )

    started = time.perf_counter()
    train = list(batches(data.train, clip.image_processor))
    fit_bases(model, train)
    coordinates = collect_coordinates(model, train)
    held_out = collect_coordinates(model, batches(data.validation, clip.image_processor))
    print(f"images read in {time.perf_counter() - started:.1f} s")

    fits = []
    for rate in options.learning_rates:
        restart_gains(model)
        fit = fit_gains(classifier, coordinates, held_out, learning_rate=rate)
        print(f"learning rate {rate:g}: validation {fit.accuracy:.3f}, {fit.seconds:.1f} s")
        fits.append(fit)
    best = max(fits, key=lambda fit: fit.accuracy)
    with torch.no_grad():
        gains_of(model).copy_(best.gains)
    with model.disable_adapter():
        before = evaluate(classifier, data.test).metrics["accuracy"]
    after = evaluate(classifier, data.test).metrics["accuracy"]
    print(f"test accuracy: zero-shot {before:.3f} -> adapted {after:.3f}")


if __name__ == "__main__":
    main()
