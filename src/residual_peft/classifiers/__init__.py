"""Classes beside a model: embeddings, predictions, scores, files, many tasks at once."""

__all__ = [
    "adapters",
    "backbones",
    "cards",
    "class_means",
    "evaluation",
    "exporting",
    "figures",
    "files",
    "heads",
    "many_tasks",
    "named_base",
    "none_of_these",
    "outputs",
    "predictions",
    "prompts",
    "trained_head",
    "updating",
    "zero_shot",
]
