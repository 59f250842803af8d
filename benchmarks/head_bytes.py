"""What a class head loses in fewer bytes: 16 bits, 8 bits, and low rank in 8 bits.

    python benchmarks/head_bytes.py       # minutes, with apt-get and dpkg; writes head_bytes.json

Ridges on heads and MLPs: handwriting's ten classes, clip art's 30 subjects, and all folders of clip
art with twelve pictures or more as classes of their own, a quarter of each to test on. `rank` is
the share of the rank that is kept; `bytes` that of the head in float32; `disagree` the share of
test images that are told another class than by the head in float32.
"""

import json
from pathlib import Path
from typing import Any

import torch
from heads_tasks import (
    Rows,
    _classifier,
    _dataset,
    _kept,
    _rows,
    _small,
    _with_basis,
    clip_art_folder,
    clip_art_rows,
    handwriting_rows,
    on_white,
)
from tqdm.auto import tqdm

from residual_peft.app.demonstration import handwriting_task
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.heads import fit_ridge, head_from_state, low_rank
from residual_peft.classifiers.heads.compress import bytes_of, eight_bits, evened
from residual_peft.data import batches

OUT = Path(__file__).with_suffix(".json")
KIND = "heads and MLPs"
LEAST = 12
SHARES = (0.8, 0.6, 0.4, 0.2)


def folders() -> dict[str, Rows]:
    """Clip art, each folder a class."""

    def made() -> dict[str, Rows]:
        root, backbone = clip_art_folder(), load_backbone()
        model = _with_basis(backbone, handwriting_task(backbone).basis)
        found: dict[Path, list[Path]] = {}
        for file in sorted(root.rglob("*.png")):
            if _small(file):
                found.setdefault(file.parent, []).append(file)
        kept = {place: files for place, files in found.items() if len(files) >= LEAST}
        names = [f"kind {number}" for number in range(len(kept))]  # their paths are no words
        classifier = _classifier(model, backbone, names, ("a {}",))
        parts: dict[str, tuple[list[Any], list[int]]] = {"train": ([], []), "test": ([], [])}
        for label, files in enumerate(tqdm(kept.values())):
            for row, file in enumerate(files):
                images, labels = parts["test" if row % 4 == 3 else "train"]
                images.append(on_white(file))
                labels.append(label)
        return {
            split: _rows(
                classifier, batches(_dataset(images, labels, names), backbone.image_processor)
            )
            for split, (images, labels) in parts.items()
        }

    return _kept("clip art folders", made)


def measured(train: Rows, test: Rows) -> dict[str, Any]:
    """Accuracy of the head in float32, and of it in fewer bytes."""
    features, of_test = train.features[KIND], test.features[KIND]
    head = fit_ridge(features, train.labels, train.class_count, zero_shot=train.zero_shot).head
    whole, rank = bytes_of(head.state()), min(head.weights.shape)
    told = head.logits(of_test, test.zero_shot).argmax(1)

    def row(state: dict[str, Any]) -> dict[str, float]:
        answers = head_from_state(state).logits(of_test, test.zero_shot).argmax(1)
        return {
            "bytes": round(bytes_of(state) / whole, 3),
            "accuracy": round(float((answers == test.labels).double().mean()), 4),
            "disagree": round(float((answers != told).double().mean()), 4),
        }

    def of_rank(share: float) -> dict[str, float]:
        small = low_rank(head, features, max(1, round(share * rank)))
        factors = small.state(torch.float16)
        return row(eight_bits(small.head) | {name: factors[name] for name in ("right", "offset")})

    return {
        "images": {"train": len(train), "test": len(test)},
        "classes": train.class_count,
        "columns": features.shape[1],
        "32 bits": row(head.state()),
        "16 bits": row(evened(head).state(torch.float16)),
        "8 bits": row(eight_bits(head)),
        "8 bits, of rank": {f"{share:g}": of_rank(share) for share in SHARES},
    }


def main() -> None:
    """Measure and write."""
    tasks = {
        "handwriting": handwriting_rows(),
        "clip art, 30 subjects": clip_art_rows(),
        "clip art, folders": folders(),
    }
    found = {name: measured(parts["train"], parts["test"]) for name, parts in tasks.items()}
    OUT.write_text(json.dumps(found, indent=2) + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
