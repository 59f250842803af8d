"""Words for the bundled model's units: how much they explain, and whether they make sense.

    python benchmarks/words.py        # writes words.json beside itself; a minute

2,000 held-out images of the world, whose attributes are known, and a dictionary of every value of
every attribute in each of its templates (222 texts, `attribute_texts`), raw and centred. Beside
them as many random directions; and, since the bundled model's texts fill no narrow cone as those of
large CLIPs do, the same texts pushed into one (all moved along one random direction, to a mean
cosine of about 0.8), raw and centred again.

Sense is measured against the images: a unit (or a component) is about the attribute that explains
most of its variance (epsilon squared, `variance_explained`), and a text hits if it names that
attribute. Chance is what the same texts hit when dealt to the units at random. Shapes, digits and
letters are all told by their outlines, and heads mix them up: "outline as one" counts the three as
one attribute.
"""

import random
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from residual_peft.analysis import (
    Contributions,
    Explanation,
    TextDictionary,
    UnitContribution,
    collect_contributions,
    explain_components,
    explain_units,
    variance_explained,
)
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.demo.drawing import draw
from residual_peft.demo.tasks import pixels
from residual_peft.demo.world import (
    ATTRIBUTES,
    TEMPLATES,
    Scene,
    attribute_texts,
    in_good_english,
    sample_scenes,
)
from residual_peft.hub.files import write_json

IMAGES, SEED, STEPS, CLEAR, COMPONENTS = 2000, 4 * 10**9, 10, 0.3, 3
COUNTED = (1, 2, 5, 10)
METHODS = ("somp", "textspan")
CONE = 1.9  # lengths of an embedding
OUTLINES = dict.fromkeys(("shape", "digit", "letter"), "outline")


def see(seed: int = SEED) -> tuple[Contributions, Scene, dict[str, TextDictionary]]:
    """What heads and MLPs wrote to images of known scenes, and three dictionaries."""
    backbone = load_backbone()
    generator = torch.Generator().manual_seed(seed)
    scene = sample_scenes(IMAGES, generator)
    images = pixels(draw(scene, generator))
    seen = collect_contributions(backbone.model, images.split(250), ["head", "mlp"])
    raw = TextDictionary.from_texts(backbone.model, backbone.tokenizer, attribute_texts())
    noise = TextDictionary(raw.texts, torch.randn(raw.embeddings.shape, generator=generator))
    away = torch.nn.functional.normalize(torch.randn(raw.width, generator=generator), dim=0)
    cone = TextDictionary(raw.texts, raw.embeddings + CONE * away)
    return (
        seen,
        scene,
        {
            "raw": raw,
            "centred": raw.center(),
            "cone, raw": cone,
            "cone, centred": cone.center(),
            "random directions": noise,
        },
    )


def about(scene: Scene, coordinates: Tensor) -> tuple[str, float]:
    """The attribute that explains most of the variance of coordinates (N, k), and its share."""
    shares = {}
    for name, labels in scene.values.items():
        variances = coordinates[labels >= 0].double().var(0)
        explained = variance_explained(coordinates, labels)
        shares[name] = float(explained @ variances / variances.sum())
    best = max(shares, key=lambda name: shares[name])
    return best, shares[best]


@cache
def named(text: str) -> tuple[str, int]:
    """The attribute and the value that a text names."""
    attribute = attribute_texts()[text]
    for template in TEMPLATES[attribute]:
        for index, value in enumerate(ATTRIBUTES[attribute]):
            if in_good_english(template.format(value)) == text:
                return attribute, index
    raise ValueError(text)


def jaccard(some: Iterable[Any], others: Iterable[Any]) -> float:
    """How much two sets share."""
    one, other = set(some), set(others)
    return len(one & other) / len(one | other)


def hits(truth: list[str], said: list[str]) -> dict[str, Any]:
    """How often `said` is the truth, and how often it would be if dealt at random."""
    if not truth:
        return {"of": 0}
    dealt, count = Counter(said), len(truth)
    return {
        "of": count,
        "hit_rate": round(mean(a == b for a, b in zip(truth, said, strict=True)), 4),
        "dealt_at_random": round(sum(dealt[name] for name in truth) / count**2, 4),
        "p_value": round(_shuffled(truth, said), 4),
    }


def _shuffled(truth: list[str], said: list[str], draws: int = 10_000) -> float:
    """How often shuffled texts hit as many."""
    generator, found = random.Random(0), sum(a == b for a, b in zip(truth, said, strict=True))
    cards, better = list(said), 0
    for _ in range(draws):
        generator.shuffle(cards)
        better += sum(a == b for a, b in zip(truth, cards, strict=True)) >= found
    return (better + 1) / (draws + 1)


def shares(explanations: list[Explanation]) -> dict[str, float]:
    """Mean share of variance explained after so many texts."""
    return {
        str(count): round(mean(e.explained[:count][-1] for e in explanations), 4)
        for count in COUNTED
    }


def measure_units(
    seen: Contributions, scene: Scene, dictionary: TextDictionary, real: bool
) -> tuple[dict[str, Any], dict[str, list[Explanation]]]:
    """Shares, overlap of the methods and hits, for all units that vary."""
    found = {method: explain_units(seen, dictionary, method, STEPS) for method in METHODS}
    heads = {m: [e for e in es if e.unit.kind == "head"] for m, es in found.items()}
    pairs = list(zip(*heads.values(), strict=True))
    same = [a.indices[0] == b.indices[0] for a, b in pairs]
    result: dict[str, Any] = {
        "explained_by_texts": {m: shares(es) for m, es in heads.items()},
        "somp_and_textspan": {
            "jaccard_of_ten": round(mean(jaccard(a.texts, b.texts) for a, b in pairs), 4),
            "jaccard_of_the_values_named": round(
                mean(jaccard(map(named, a.texts), map(named, b.texts)) for a, b in pairs), 4
            ),
            "same_first_text": round(mean(same), 4),
        },
    }
    if real:
        axes = [about(scene, seen[unit].coordinates[:, :1]) for unit in seen.units]
        whole = [about(scene, seen[unit].coordinates) for unit in seen.units]
        for method in METHODS:
            said = [named(e.texts[0])[0] for e in found[method]]
            result[f"{method}_hits"] = {
                "by_the_first_component": sorted_out(axes, said),
                "by_all_of_the_unit": sorted_out(whole, said),
            }
    return result, heads


def sorted_out(truth: list[tuple[str, float]], said: list[str]) -> dict[str, Any]:
    """Hits of all, and of those that are clearly about one attribute."""
    clear = [index for index, (_, share) in enumerate(truth) if share >= CLEAR]
    names = [name for name, _ in truth]
    coarse = [OUTLINES.get(name, name) for name in names]
    coarse_said = [OUTLINES.get(name, name) for name in said]
    return {
        "all": hits(names, said),
        f"share_from_{CLEAR}": hits([names[i] for i in clear], [said[i] for i in clear]),
        "all, outline as one": hits(coarse, coarse_said),
    }


def measure_components(
    seen: Contributions, scene: Scene, dictionary: TextDictionary
) -> dict[str, Any]:
    """OMP of the heads' and MLPs' first components: shares, hits, and whether signs are right."""
    found = explain_components(seen, dictionary, components=COMPONENTS, steps=STEPS)
    truth, right, right_and_hit = [], [], []
    for e in found:
        assert e.component is not None
        assert e.coefficients is not None
        column = seen[e.unit].coordinates[:, e.component]
        truth.append(about(scene, column[:, None]))
        attribute, value = named(e.texts[0])
        labels = scene.values[attribute]
        more = column[labels == value].mean() - column[(labels >= 0) & (labels != value)].mean()
        right.append(bool((more > 0) == (e.coefficients[0] > 0)))
        if truth[-1][0] == attribute:
            right_and_hit.append(right[-1])
    return {
        "components": len(found),
        "of_each_unit": COMPONENTS,
        "explained_by_texts": shares(found),
        "hits": sorted_out(truth, [named(e.texts[0])[0] for e in found]),
        "sign_of_the_first_text_is_that_of_the_images": round(mean(right), 4),
        "the_same_where_the_text_hits": round(mean(right_and_hit), 4),
    }


def described(part: UnitContribution, scene: Scene, found: list[Explanation]) -> dict[str, Any]:
    """One head in words."""
    attribute, share = about(scene, part.coordinates[:, :1])
    return {
        "first_component_is_about": attribute,
        "share_of_its_variance": round(share, 4),
        **{
            e.method: {
                "texts": list(e.texts[:5]),
                "explained": {str(n): round(e.explained[:n][-1], 4) for n in COUNTED},
            }
            for e in found
        },
    }


def main() -> None:
    """Measure, and say it."""
    seen, scene, dictionaries = see()
    results: dict[str, Any] = {
        "images": IMAGES,
        "texts": len(dictionaries["raw"]),
        "mean_cosine_of_two_texts": {
            name: round(_mean_cosine(d.embeddings), 4) for name, d in dictionaries.items()
        },
        "dictionaries": {},
    }
    for name, dictionary in dictionaries.items():
        real = name != "random directions"
        found, heads = measure_units(seen, scene, dictionary, real)
        if real:
            found["components_by_omp"] = measure_components(seen, scene, dictionary)
        results["dictionaries"][name] = found
        if name == "centred":
            results["heads"] = {
                str(pair[0].unit): described(seen[pair[0].unit], scene, list(pair))
                for pair in zip(*heads.values(), strict=True)
            }
        print(name, found)
    write_json(Path(__file__).with_suffix(".json"), results)


def _mean_cosine(embeddings: Tensor) -> float:
    cosines = embeddings @ embeddings.T
    count = len(cosines)
    return float((cosines.sum() - count) / (count * (count - 1)))


if __name__ == "__main__":
    main()
