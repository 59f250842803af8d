"""Model cards: metadata that the Hub reads, text that a person reads; knows values, no models."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import ResiDualError
from .directories import DEMO_MODEL
from .facts import Facts

TASK = "zero-shot-image-classification"
NO_TEXT_TASK = "image-classification"  # where classes are means of images
METRIC_NAMES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "mean_average_precision": "mean average precision",
    "micro_f1": "F1 over all labels (micro)",
    "macro_f1": "F1 by class (macro)",
    "exact_match": "all labels right",
}
MARK = "<!-- written by residual-peft; without this line the card is yours and stays as it is -->"
_SPECIAL = re.compile(r"[\\`*_{}\[\]()#.!|~$:@^]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

CardFacts = Facts
"""What `save_pretrained` and `push_to_hub` take for a card; the adapter fills in the rest."""


def adapter_card(facts: Facts) -> str:
    """The README.md of a classifier.

    Raises:
        ResiDualError: what was given makes no valid card.
    """
    family = _family(facts.base_class)
    means = not facts.templates and "CLIP" not in family  # class names were in no prompt
    subject = facts.data_name or f"{len(facts.class_names)} classes"
    title = facts.title or f"{subject}, by {'an adapted' if facts.peft_type else 'a'} {family}"
    body = _render(
        "adapter_card.md.jinja",
        facts=facts,
        title=title,
        means=means,
        base=_base_in_words(facts.base_model, facts.base_class or "model"),
        found_by_name=facts.base_model == DEMO_MODEL or _hub_id(facts.base_model) is not None,
        metric_names=METRIC_NAMES,
    )
    task = NO_TEXT_TASK if means else TASK
    return _whole_card(_metadata(facts, title, task, family), body)


def basis_card(
    *, location: str, model: str, units: Mapping[str, int], components: int, basis: str
) -> str:
    """The README.md of a basis of some `units` of a `model`: kind -> how many of it.

    The example loads from `location`; `components` are directions in all, and `basis` says in words
    what it was fitted on.
    """
    body = _render(
        "basis_card.md.jinja",
        location=location,
        base=_base_in_words(model, "image tower"),
        units=units,
        components=components,
        basis=basis,
    )
    data = ModelCardData(
        library_name="residual-peft", base_model=_hub_id(model), tags=["residual-peft", "clip"]
    )
    return _whole_card(data, body)


def _family(base_class: str | None) -> str:
    """What a class's models are called: CLIP of CLIPModel, SigLIP of SiglipModel."""
    name = re.sub(r"(Vision|Text)?(Model(WithProjection)?|For[A-Z].*)$", "", base_class or "CLIP")
    spoken = {"Siglip": "SigLIP", "Siglip2": "SigLIP 2", "Blip": "BLIP", "Dinov2": "DINOv2"}
    return spoken.get(name, name or "CLIP")


def _base_in_words(name: str | None, kind: str) -> str:
    """The base model in Markdown; of a path only the end, the rest says nothing to others."""
    if name == DEMO_MODEL:
        return f"the CLIP that comes with residual-peft ({as_code(name)})"
    if _hub_id(name):
        return f"[{as_text(name)}](https://huggingface.co/{name})"
    if name:
        return f"a {as_text(kind)} of a local directory, {as_code(PurePath(name).name)}"
    return f"a {as_text(kind)} without a name"


def _metadata(facts: Facts, title: str, task: str, family: str) -> ModelCardData:
    hub_model, library = _hub_id(facts.base_model), "peft" if facts.peft_type else "transformers"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=facts.dataset_id or "imagefolder",
            dataset_name=facts.data_name or "",
            dataset_split=facts.split,
            metric_type=name,
            metric_name=METRIC_NAMES.get(name, name),
            metric_value=float(value),
        )
        for name, value in facts.metrics.items()
    ]
    data = ModelCardData(
        library_name=library,
        base_model=hub_model,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        license=facts.license,
        pipeline_tag=task,
        tags=["residual-peft", family.lower().replace(" ", "")],
        model_name=title if results else None,
        eval_results=results or None,
    )
    if hub_model and library == "peft":
        data["base_model_relation"] = "adapter"
    return data


def _whole_card(data: ModelCardData, body: str) -> str:
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    try:  # what is not read back as it was written would be refused by the Hub, too
        same = ModelCard(text).data.to_dict() == data.to_dict()
    except (ValueError, TypeError) as error:
        raise ResiDualError(f"what the card should say makes no valid card ({error}).") from error
    if not same:
        raise ResiDualError(f"what the card should say makes no valid card: {data.to_dict()}.")
    return text


def _hub_id(name: str | None) -> str | None:
    """The name where the Hub can know it: neither a path nor the bundled model."""
    if not name or name == DEMO_MODEL:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if "/" in name else None


def as_text(value: object) -> str:
    """Any text -> Markdown that shows it as it is, on one line.

    >>> as_text("a_b <i>")
    'a\\\\_b &lt;i&gt;'
    """
    line = "".join(_ENTITIES.get(c, c) for c in " ".join(str(value).split()))
    return _SPECIAL.sub(lambda match: "\\" + match[0], line)


def as_code(value: object) -> str:
    """Any text -> a Markdown code span on one line, whatever backticks it holds.

    >>> as_code("a {}.")
    '`a {}.`'
    """
    line = " ".join(str(value).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


@cache
def environment_of(room: str, *, autoescape: bool = False) -> Environment:
    """Where the templates of a room are filled in: a name without a value is an error."""
    return Environment(
        loader=PackageLoader(f"residual_peft.{room}", "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _render(template: str, **values: Any) -> str:
    environment = environment_of("hub")
    environment.filters |= {"text": as_text, "code": as_code, "quoted": json.dumps}
    return environment.get_template(template).render(**values, mark=MARK)
