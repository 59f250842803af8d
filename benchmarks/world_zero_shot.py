"""The bundled model's zero-shot accuracy on held-out images of its world, per attribute.

    python benchmarks/world_zero_shot.py        # writes world_zero_shot.json beside itself

The images are drawn with seeds that neither the pretraining nor its log ever used.
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPModel

from residual_peft.demo.tasks import zero_shot_accuracy
from residual_peft.hub.directories import DEMO_MODEL, local_directory
from residual_peft.hub.files import write_json

IMAGES_PER_TASK = 4000
GOALS = dict.fromkeys(("color", "background", "position", "size"), 0.95) | dict.fromkeys(
    ("shape", "texture", "digit"), 0.90
)


def main() -> None:
    directory = local_directory(DEMO_MODEL)
    model = CLIPModel.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    scores = zero_shot_accuracy(model, tokenizer, images_per_task=IMAGES_PER_TASK, seed=3 * 10**9)
    for name, score in scores.items():
        goal = GOALS.get(name)
        print(f"{name:12s} {score:.4f}" + (f"  (goal {goal:.2f})" if goal else ""))
    write_json(
        Path(__file__).with_suffix(".json"),
        {
            "images_per_task": IMAGES_PER_TASK,
            "accuracy": {name: round(score, 4) for name, score in scores.items()},
            "goals": GOALS,
            "goals_met": all(scores[name] >= goal for name, goal in GOALS.items()),
        },
    )


if __name__ == "__main__":
    main()
