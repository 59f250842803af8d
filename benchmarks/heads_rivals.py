"""Every rival of the class heads, on the embedding and on coordinates: handwriting, bundled model.

    python benchmarks/heads_rivals.py            # writes heads_rivals.json beside itself

Accuracy on the test images, mean and standard deviation over `few_shot.py`'s five draws of the
training images. Every method chooses its strength on left-out training images alone; none gets
validation images. On the embedding methods from the CLIP literature take unit rows as they are, as
in their papers; on coordinates (heads and MLPs) rows are centred and scaled with p = 1/2 first.

ProLIP and the linear map move the readout itself, so that they are for the embedding alone; `1/N`
is ProLIP's own strength, `chosen` the best of six by left-out images. `blend`: the zero-shot
classifier on class embeddings that are text and means of images, and the means' share.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from heads_tasks import Rows, handwriting_rows, some_of
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.heads import fit_ridge
from residual_peft.classifiers.heads.blend import blend
from residual_peft.classifiers.heads.discriminant import fit_discriminant
from residual_peft.classifiers.heads.gaussian import fit_gaussian
from residual_peft.classifiers.heads.logistic import fit_logistic
from residual_peft.classifiers.heads.lp_plus import fit_lp_plus
from residual_peft.classifiers.heads.nearest import fit_means, fit_neighbours
from residual_peft.classifiers.heads.projection import fit_projection
from residual_peft.classifiers.heads.proker import fit_proker
from residual_peft.classifiers.heads.tip_adapter import fit_tip_adapter, fit_tip_adapter_f
from residual_peft.hub.files import write_json

SHOTS: tuple[int | None, ...] = (1, 2, 4, 8, 16, None)
DRAWS = 5
STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
SCALED: dict[str, Any] = {
    "ridge": fit_ridge,
    "logistic regression": fit_logistic,
    "discriminant analysis": fit_discriminant,
}
BY_COSINES: dict[str, Any] = {
    "class means": fit_means,
    "k-NN": fit_neighbours,
    "LP++": fit_lp_plus,
    "Tip-Adapter": fit_tip_adapter,
    "Tip-Adapter-F": fit_tip_adapter_f,
    "GDA": fit_gaussian,
    "ProKeR": fit_proker,
}
Answer = tuple[Tensor, int]  # logits of the test images, numbers trained


def on(kind: str, fit: Any, train: Rows, test: Rows) -> Answer:
    """A method on one kind of features."""
    found = fit(train.features[kind], train.labels, train.class_count, zero_shot=train.zero_shot)
    scorer = getattr(found, "head", found)
    return scorer.logits(test.features[kind], test.zero_shot), scorer.parameter_count


def moved(start: Tensor, scale: float, options: dict[str, Any], train: Rows, test: Rows) -> Answer:
    """A projection fitted again, on the features before it.

    The bundled model's projection is square, so that those are told from the embedding; and since
    cosines do not see a length, they are told up to theirs.
    """
    before = [
        torch.linalg.solve(start, rows.features["embedding"].double().mT).mT
        for rows in (train, test)
    ]
    found = fit_projection(
        before[0], train.labels, train.text, start=start, logit_scale=scale, **options
    )
    return found.logits(before[1]), found.parameter_count


def blended(scale: float, shares: list[float], train: Rows, test: Rows) -> Answer:
    """Cosines to blends of text and means."""
    found = blend(train.text, train.features["embedding"], train.labels, train.class_count)
    shares.append(found.share)
    rows = functional.normalize(test.features["embedding"].double(), dim=1)
    return scale * rows @ found.embeddings.mT, 1


def methods() -> dict[str, Callable[[Rows, Rows], Answer]]:
    """By name."""
    model = load_backbone().model
    scale = float(model.logit_scale.exp())
    projection = model.visual_projection.weight.detach().double()
    identity = torch.eye(len(projection), dtype=torch.float64)
    found: dict[str, Callable[[Rows, Rows], Answer]] = {}
    for name, fit in (SCALED | BY_COSINES).items():
        found[f"{name}, embedding"] = partial(on, "embedding", fit)
    for name, fit in SCALED.items():
        found[f"{name}, coordinates"] = partial(on, "heads and MLPs", fit)
    for name, fit in BY_COSINES.items():
        found[f"{name}, coordinates"] = partial(on, "heads and MLPs", partial(fit, power=0.5))
    for name, start in (("ProLIP", projection), ("linear map", identity)):
        found[f"{name}, 1/N"] = partial(moved, start, scale, {})
        found[f"{name}, chosen"] = partial(moved, start, scale, {"strengths": STRENGTHS})
    found["blend"] = partial(blended, scale, SHARES)
    return found


SHARES: list[float] = []


def measured(method: Callable[[Rows, Rows], Answer], draws: list[Rows], test: Rows) -> Any:
    """Mean over the draws, with their spread."""
    scores, trained, started = [], [], time.process_time()
    for train in draws:
        logits, count = method(train, test)
        scores.append(float((logits.argmax(1) == test.labels).double().mean()))
        trained.append(count)
    seconds = (time.process_time() - started) / len(draws)
    found = {"accuracy": round(mean(scores), 4), "trained": round(mean(trained))}
    if len(scores) > 1:
        found["spread"] = round(stdev(scores), 4)
    return found | {"processor seconds": round(seconds, 2)}


def main() -> None:
    """Measure all methods."""
    parts = handwriting_rows()
    train, test = parts["train"], parts["test"]
    found: dict[str, Any] = {}
    for shots in tqdm(SHOTS, "Handwriting"):
        draws = [
            train.rows(some_of(train.labels, shots, torch.Generator().manual_seed(draw)))
            for draw in range(DRAWS if shots is not None else 1)
        ]
        name = "all" if shots is None else str(shots)
        found[name] = {}
        for method, fit in methods().items():
            SHARES.clear()
            found[name][method] = measured(fit, draws, test)
            if SHARES:
                found[name][method]["share of means"] = round(mean(SHARES), 3)
            tqdm.write(f"{name} {method}: {found[name][method]}")
        results = {"draws": DRAWS, "images_per_class": found}
        write_json(Path(__file__).with_suffix(".json"), results)


if __name__ == "__main__":
    main()
