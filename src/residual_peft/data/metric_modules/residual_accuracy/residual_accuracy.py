"""Accuracy, top-5 accuracy and mean per-class recall as a module of Hugging Face `evaluate`.

It loads from the installed package, with no network:

    import evaluate
    from residual_peft.data.metrics import evaluate_module_path
    metric = evaluate.load(evaluate_module_path())
    metric.compute(predictions=logits, references=labels)
"""

from typing import Any

import datasets
import evaluate

from residual_peft.data.metrics import classification_metrics

_DESCRIPTION = "Accuracy, top-5 accuracy and mean per-class recall of scores over classes."
_INPUTS = """
Args:
    predictions: scores, one row per image and one column per class (logits or probabilities).
    references: the label of each image, 0 to C - 1.
Returns:
    accuracy, top5_accuracy (1.0 when there are at most five classes), mean_per_class_recall.
"""


class ResidualAccuracy(evaluate.Metric):
    """`classification_metrics` behind the interface of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    # float64: rounding may tie two scores and change the arg max
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return classification_metrics(predictions, references)
