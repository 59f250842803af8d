"""What an adapter changed: which components moved the answers, by how much, and in which words.

    python examples/explain_adapter.py

An adapter for handwritten digits, fitted in seconds; the change of all test logits is divided among
its components, exactly, and so is that of one image that it set right.
"""

import argparse
import warnings

import torch
from peft import get_peft_model
from transformers.utils.logging import disable_progress_bar

from residual_peft import (
    Objective,
    ResiDualConfig,
    ZeroShotClassifier,
    collect_coordinates,
    collect_with_basis,
    gains_of,
    load_data,
    solve_gains,
)
from residual_peft.analysis import TextDictionary, explain_adapter, explain_components, explain_row
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting
from residual_peft.demo.world import attribute_texts
from residual_peft.tuner import adapter_basis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, default=5, help="how many to show")
    options = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    data = load_data(handwriting())
    clip = load_backbone()
    model = get_peft_model(clip.model, ResiDualConfig())
    classifier = ZeroShotClassifier.from_text(
        model, clip.tokenizer, data.class_names, HANDWRITING_TEMPLATES
    )
    train = collect_with_basis(model, batches(data.train, clip.image_processor))
    test = collect_coordinates(model, batches(data.test, clip.image_processor))
    solve_gains(classifier, train, objective=Objective(normalized=False, strength=1e-4))

    found = explain_adapter(classifier, test)
    strongest = found.strongest(options.components)
    dictionary = TextDictionary.from_texts(clip.model, clip.tokenizer, attribute_texts())
    basis = adapter_basis(model)
    print(f"{found.images} images, {len(found.gains):,} gains, root mean square {found.change:.2f}")
    for effect in strongest:
        place = [effect.unit], [effect.component]
        (said,) = explain_components(basis, dictionary, *place, steps=2)
        print(
            f"{effect.unit} component {effect.component}: gain {effect.gain:.2f}, "
            f"{effect.share:.1%} of the change; {', '.join(said.texts)}"
        )
    total = float(found.share.sum()) + found.rescaling_share
    print(f"all components {float(found.share.sum()):.4f} + rescaling = {total:.6f}")

    before = classifier.logits(test.readout).argmax(1)
    after = classifier.logits(test.adapted(gains_of(model).detach())).argmax(1)
    mended = int(((before != test.labels) & (after == test.labels)).nonzero()[0])
    moved = explain_row(classifier, test, mended)
    sums = float(moved.effects.sum()) + moved.rescaling
    print(
        f"image {mended} went from {moved.from_class} to {moved.to_class}: its margin moved by "
        f"{moved.margin_after - moved.margin_before:.4f}, the sum of its parts is {sums:.4f}"
    )
    for unit, number, gain, effect in moved.strongest(3):
        print(f"  {unit} component {number}: gain {gain:.2f}, {effect:+.2f}")
    assert torch.isclose(torch.tensor(sums), torch.tensor(moved.margin_after - moved.margin_before))


if __name__ == "__main__":
    main()
