"""One pass over the images, then seconds: gains fitted from coordinates, as often as you like.

    python examples/fit_from_coordinates.py

The adapted readout is affine in the gains, so what they multiply is computed once and kept, and the
same pass fits the bases. Then a convex problem is solved for nine strengths of its ridge, of which
the validation images choose one; the norm of the gradient certifies the optimum.
"""

import argparse
import time
import warnings

from peft import get_peft_model
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
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    train = collect_with_basis(model, batches(data.train, clip.image_processor))
    held_out = collect_coordinates(model, batches(data.validation, clip.image_processor))
    print(f"images read in {time.perf_counter() - started:.1f} s")

    path = strength_path(classifier, train, held_out)
    for strength, accuracy in zip(path.strengths, path.accuracy[0].tolist(), strict=True):
        print(f"ridge {strength:g}: validation {accuracy:.3f}")
    objective = Objective(normalized=False, strength=path.best)
    fit = solve_gains(classifier, train, objective=objective)
    print(f"gains in {fit.seconds:.1f} s, norm of the gradient {fit.gradient_norm:.0e}")
    with model.disable_adapter():
        before = evaluate(classifier, data.test).metrics["accuracy"]
    after = evaluate(classifier, data.test).metrics["accuracy"]
    print(f"test accuracy: zero-shot {before:.3f} -> adapted {after:.3f}")


if __name__ == "__main__":
    main()
