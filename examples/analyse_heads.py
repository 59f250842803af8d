"""Which heads carry a task, how many dimensions they use, and what words they speak.

    python examples/analyse_heads.py

One pass over images of the bundled model's world, labelled by shape; heads are ranked on the first
half and scored on the second.
"""

import argparse
import warnings

from transformers.utils.logging import disable_progress_bar

from residual_peft import ZeroShotClassifier
from residual_peft.analysis import (
    TextDictionary,
    collect_contributions,
    compare_selections,
    dimension_profile,
    explain_units,
    spectral_similarity,
)
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.demo.tasks import world_task
from residual_peft.demo.world import ATTRIBUTES, TEMPLATES, attribute_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="shape", choices=list(ATTRIBUTES))
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    clip = load_backbone()
    classifier = ZeroShotClassifier.from_text(
        clip.model, clip.tokenizer, ATTRIBUTES[options.task], TEMPLATES[options.task]
    )
    chosen_on, scored_on = (
        collect_contributions(
            clip.model,
            batches(world_task(options.task, options.images, seed=seed), clip.image_processor),
        )
        for seed in (1, 2)
    )

    study = compare_selections(chosen_on, scored_on, classifier.class_embeddings)
    print(f"{options.task}: whole model {study.line('B').accuracy:.3f}")
    for letter in ("S", "U|T", "R"):
        points = study.curve(letter).points
        scores = ", ".join(f"{point.units} heads {point.accuracy:.3f}" for point in points[2:5])
        print(f"{letter}: {scores}")

    best = study.rankings[0].top(3)
    profile = dimension_profile(chosen_on.select(best))
    dictionary = TextDictionary.from_texts(clip.model, clip.tokenizer, attribute_texts())
    words = explain_units(chosen_on, dictionary, units=best, steps=3)
    heads = chosen_on.select(["head"])
    alike = spectral_similarity(heads.basis(clip.model))
    for row, said in zip(profile.rows(), words, strict=True):
        other, cosine = alike.nearest(row["unit"], 1)[0]
        print(
            f"{row['unit']}: {row['linear']} linear dimensions, TwoNN {row['two_nn']:.1f}; "
            f"most like {other} ({cosine:.2f}); {', '.join(said.texts)}"
        )


if __name__ == "__main__":
    main()
