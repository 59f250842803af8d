"""Classes beside a model: embeddings, predictions, scores, files, many tasks at once."""

__all__ = [
    "adapters",
    "backbones",
    "cards",
    "changeable",
    "class_means",
    "cosines",
    "evaluation",
    "exporting",
    "figures",
    "files",
    "heads",
    "kept",
    "many_tasks",
    "none_of_these",
    "outputs",
    "predictions",
    "prompts",
    "trained_head",
    "zero_shot",
]
