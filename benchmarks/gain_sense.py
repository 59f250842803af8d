"""Do gains make sense: does an adapter for colour amplify the components that vary with colour?

    python benchmarks/gain_sense.py        # writes gain_sense.json beside itself; two minutes

For each of the nine attributes of the bundled model's world an adapter is fitted from coordinates
(800 images to fit, 200 to choose the ridge by), with heads and MLPs over one basis; and once more
with a ridge of 1e-4: most of these tasks are solved before, and choose the strongest one. On 3,000
other images that show all attributes, the share of each component's variance that every attribute
explains (ε²) is compared with the gains: Spearman's correlation over components, and the mean share
among the tenth with the largest gains, beside the mean over all. Components that hold less than
1e-4 of the variance are left out.
"""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

from residual_peft import (
    Objective,
    ResiDualConfig,
    ZeroShotClassifier,
    collect_coordinates,
    fit_bases,
    solve_gains,
    strength_path,
)
from residual_peft.analysis import explain_adapter, gain_sense, variance_explained
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.data.metrics import accuracy
from residual_peft.demo.drawing import draw
from residual_peft.demo.tasks import pixels, world_images, world_task
from residual_peft.demo.world import ATTRIBUTES, TEMPLATES, Scene, sample_scenes
from residual_peft.hub.files import write_json

SEED, IMAGES, FIXED = 31, 3000, 1e-4


def world(count: int) -> tuple[list[dict[str, Tensor]], Scene]:
    """Images of the whole world, and what they show."""
    generator = torch.Generator().manual_seed(3 * 10**9)
    scene = sample_scenes(count, generator)
    drawn = draw(scene, generator)
    labels = torch.zeros(count, dtype=torch.int64)
    parts = torch.arange(count).split(250)
    return [{"pixel_values": pixels(drawn[p]), "labels": labels[p]} for p in parts], scene


def compared(gains: Tensor, attribute: str, seen: Any, shares: dict[str, Tensor]) -> dict[str, Any]:
    """Gains against the variance that every attribute explains."""
    variance = seen.coordinates.double().square().mean(0)
    against = {name: gain_sense(gains, explained, variance) for name, explained in shares.items()}
    own = against[attribute]
    order = sorted(against, key=lambda name: -against[name].correlation)
    return {
        "components": own.components,
        "correlation": round(own.correlation, 3),
        "p_value": float(f"{own.p_value:.2g}"),
        "share_explained": {
            "largest_gains": round(own.amplified, 3),
            "smallest_gains": round(own.silenced, 3),
            "all": round(own.all, 3),
        },
        "correlation_with": {name: round(s.correlation, 3) for name, s in against.items()},
        "rank_of_own_attribute": order.index(attribute) + 1,
    }


def measure(attribute: str, model: Any, clip: Any, seen: Any, shares: dict[str, Tensor]) -> Any:
    """Fit one attribute's adapter, with a chosen and with a fixed ridge."""
    rows = []
    for size, seed in ((800, SEED), (200, SEED + 1), (1000, SEED + 2)):
        split = world_task(attribute, size, seed=seed)
        rows.append(collect_coordinates(model, batches(split, clip.image_processor)))
    classifier = ZeroShotClassifier.from_text(
        model, clip.tokenizer, ATTRIBUTES[attribute], TEMPLATES[attribute]
    )
    linear = Objective(normalized=False)
    chosen = strength_path(classifier, rows[0], rows[1], objective=linear).best
    found = {"zero_shot": accuracy(classifier.logits(rows[2].readout), rows[2].labels)}
    for name, strength in (("chosen_ridge", chosen), ("fixed_ridge", FIXED)):
        solve_gains(classifier, rows[0], objective=Objective(False, strength=strength))
        effects = explain_adapter(classifier, rows[2])
        explained, pull = shares[attribute].clamp_min(0), effects.share.abs()
        weighted = float((pull * explained).sum() / pull.sum())
        logits = classifier.logits(rows[2].adapted(effects.gains.float()))
        found[name] = {
            "strength": strength,
            "adapted": accuracy(logits, rows[2].labels),
            **compared(effects.gains, attribute, seen, shares),
            "share_explained_weighted_by_effect_on_logits": round(weighted, 3),
        }
    return found


def main() -> None:
    """All attributes."""
    clip = load_backbone()
    model = get_peft_model(clip.model, ResiDualConfig())
    fit_bases(model, batches(world_images(2000), clip.image_processor))
    images, scene = world(IMAGES)
    seen = collect_coordinates(model, images)
    shares = {name: variance_explained(seen.coordinates, scene.values[name]) for name in ATTRIBUTES}
    results = {}
    for attribute in ATTRIBUTES:
        results[attribute] = measure(attribute, model, clip, seen, shares)
        print(attribute, results[attribute], flush=True)
    write_json(
        Path(__file__).with_suffix(".json"),
        {
            "images": IMAGES,
            "attributes": results,
            "summary": {
                kind: {
                    "own_correlation": {a: row[kind]["correlation"] for a, row in results.items()},
                    "own_attribute_correlates_most": [
                        a for a, row in results.items() if row[kind]["rank_of_own_attribute"] == 1
                    ],
                }
                for kind in ("chosen_ridge", "fixed_ridge")
            },
        },
    )


if __name__ == "__main__":
    main()
