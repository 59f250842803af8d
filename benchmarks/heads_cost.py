"""What a class head costs at real size: fitting, choosing, predicting; `heads.py` calls it.

Seconds are the processor's, of all threads together, so that other programs on the machine count
little; both sides of a ratio are measured in one run. Features are random, of a ViT-B/16's sizes.
Predictions are timed with one thread: threads that wait for the next product count as busy, and a
forward with many small products after it has more to wait for than to do.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from peft import get_peft_model
from speed import classifier_of, pixels
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from residual_peft import ResiDualConfig
from residual_peft.bases.reading import reading
from residual_peft.classifiers.heads import ClassHead, choose_ridge, fit_ridge
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.tuner import readout_state

IMAGES, COLUMNS, CLASSES = 10_000, 15_360, 100
CHOICE_IMAGES = 2000
CHOICE_COLUMNS = {"embedding": 512, "heads": 9_216, "heads and MLPs": 15_360}
ENCODED = 8
BATCHES = (1, 8, 32)


def spent(function: Callable[[], Any]) -> float:
    """Processor seconds of one call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def fitting(images: int = IMAGES) -> dict[str, Any]:
    """A whole fit against one Gram matrix and one eigendecomposition of the smaller side."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % CLASSES
    centres = 0.1 * torch.randn(CLASSES, COLUMNS, generator=generator)
    features = centres[labels] + torch.randn(images, COLUMNS, generator=generator)
    zero_shot = torch.randn(images, CLASSES, generator=generator)

    def least() -> None:
        rows = features.double()
        torch.linalg.eigh(rows @ rows.mT)

    base = spent(least)
    whole = spent(lambda: fit_ridge(features, labels, CLASSES, zero_shot=zero_shot))
    found = {"images": images, "columns": COLUMNS, "classes": CLASSES, "ratio": whole / base}
    return found | {"seconds": whole, "least": base, "goal": 1.5}


def encoder() -> Any:
    """A ViT-B/16 with random weights."""
    torch.manual_seed(0)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16, projection_dim=512)).eval()


def choosing() -> dict[str, Any]:
    """The choice among features and powers against the encoding pass, measured on a few images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CHOICE_IMAGES) % CLASSES
    features = {
        name: torch.randn(CHOICE_IMAGES, columns, generator=generator)
        for name, columns in CHOICE_COLUMNS.items()
    }
    chosen = spent(lambda: choose_ridge(features, labels, CLASSES))
    model = get_peft_model(encoder(), ResiDualConfig(units=("head", "mlp")))
    batch = pixels(ENCODED)

    def encode() -> None:
        for _ in reading(model, None, [{"pixel_values": batch}]):
            pass

    encode()
    passed = spent(encode) * CHOICE_IMAGES / ENCODED
    found = {"images": CHOICE_IMAGES, "ratio": chosen / passed, "seconds": chosen, "pass": passed}
    return found | {"encoded": ENCODED, "goal": 0.10}


def predicting(rounds: int = 7) -> dict[str, Any]:
    """Predictions with a head on all coordinates against forwards of the same tower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = encoder()
    model = get_peft_model(encoder(), ResiDualConfig(units=("head", "mlp")))
    columns = len(readout_state(model).directions)
    classifier = classifier_of(model, CLASSES)
    head = ClassHead(
        torch.zeros(columns), torch.ones(columns), torch.randn(columns, CLASSES) / columns**0.5,
        torch.zeros(CLASSES), 0.1, 10.0,
    )  # fmt: skip
    classifier.set_head(TrainedHead(head))
    found = {str(size): _predicting(classifier, plain, size, rounds) for size in BATCHES}
    torch.set_num_threads(threads)
    return {"columns": columns, "threads": 1, "rounds": rounds, "goal": 1.02, "batches": found}


def _predicting(classifier: Any, plain: Any, size: int, rounds: int) -> dict[str, float]:
    """Of one size of batch: the least seconds of either, and their ratio."""
    batch = [{"pixel_values": pixels(size)}]

    def predict() -> None:
        for _ in classifier.classified(batch):
            pass

    def forward() -> None:
        for _ in reading(plain, None, batch):
            pass

    times: dict[Any, list[float]] = {predict: [], forward: []}
    predict(), forward()
    for turn in range(rounds):
        for function in sorted(times, key=id, reverse=bool(turn % 2)):
            times[function].append(spent(function))
    ours, base = min(times[predict]), min(times[forward])
    ratios = [a / b for a, b in zip(times[predict], times[forward], strict=True)]
    found = {"ratio": ours / base, "median": median(ratios), "seconds": ours, "forward": base}
    return {name: round(value, 4) for name, value in found.items()}


def cost() -> dict[str, Any]:
    """The fit and the choice."""
    found = {"choosing": choosing(), "fitting": fitting()}
    return {
        name: {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in row.items()
        }
        for name, row in found.items()
    }
