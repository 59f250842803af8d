"""Class names and prompt templates -> class embeddings W_text, the ensemble rule of CLIP."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.class_names import check_class_names, check_templates, spoken
from ..errors import ResiDualError
from ..towers.families.open_clip import is_open_clip
from ..towers.readouts import Readout
from ..towers.registry import base_model, find_tower

DEFAULT_TEMPLATES = ("a photo of a {}.",)


def embed_classes(
    text_model: nn.Module,
    tokenizer: Any,
    class_names: Iterable[str],
    templates: Iterable[str] = DEFAULT_TEMPLATES,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Class embeddings W_text (C, d), unit norm, float32 or better, on the text tower's device.

    Each prompt is embedded and normalized, the prompts of a class are averaged, and the mean is
    normalized again (Radford et al. 2021, section 3.1.4). Underscores in names become spaces.

    Args:
        text_model: a dual encoder such as a CLIPModel (or one that PEFT has wrapped), a text tower
            with its projection, or a model of open_clip.
        tokenizer: its tokenizer, or a processor that has one (of open_clip: get_tokenizer(name)).
        class_names: C names.
        templates: texts with `{}` where the name goes.
        batch_size: prompts per forward pass.

    Raises:
        ResiDualError: bad names or templates; a prompt longer than the context (names the class);
            a tokenizer that does not fit the model.
    """
    names, templates = check_class_names(class_names), check_templates(templates)
    prompts = [t.replace("{}", spoken(name)) for name in names for t in templates]
    model: Any = base_model(text_model)
    device = next(model.parameters()).device
    if is_open_clip(model):
        return _ensembled(_open_clip_features(model, tokenizer, prompts, batch_size), len(names))
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    tokens = [list(ids) for ids in tokenizer(prompts)["input_ids"]]
    config = getattr(model.config, "text_config", model.config)
    readout: Readout | None = None
    with suppress(ResiDualError):  # where only the model knows how it is read
        readout = find_tower(model, "text").readout
    context = _context(model, config)
    _check_tokens(
        tokens, prompts, names, context, config.vocab_size, getattr(readout, "token_id", None)
    )
    padding = getattr(tokenizer, "pad_token_id", None)
    padding = tokenizer.eos_token_id if padding is None else padding
    # who reads the last token does so of texts as long as in training, padding and all
    whole = context if getattr(readout, "token", 0) == -1 else 0
    left = bool(whole) and getattr(tokenizer, "padding_side", "right") == "left"
    features = []
    with torch.no_grad():
        for start in range(0, len(tokens), batch_size):
            ids, mask = _pad(tokens[start : start + batch_size], padding, whole, left)
            features.append(
                _text_features(model, ids.to(device), None if whole else mask.to(device))
            )
    return _ensembled(torch.cat(features), len(names))


def _ensembled(features: Tensor, classes: int) -> Tensor:
    """Of the prompts (C·t, d) -> of the classes (C, d)."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    embeddings = functional.normalize(features, dim=-1).unflatten(0, (classes, -1))
    return functional.normalize(embeddings.mean(1), dim=-1)


def _open_clip_features(model: Any, tokenizer: Any, prompts: list[str], batch_size: int) -> Tensor:
    """The same by open_clip's own tokenizer, which gives all prompts one length, and its tower."""
    ids = tokenizer(prompts)
    length = model.context_length
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] != length:
        raise ResiDualError(
            "wanted open_clip's own tokenizer for this model, open_clip.get_tokenizer(name), which "
            f"gives token ids as a tensor (prompts, {length}); got a {type(tokenizer).__name__}."
        )
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model.encode_text(part.to(device)) for part in ids.split(batch_size)])


def _text_features(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    if hasattr(model, "text_proj"):  # of retrieval: no get_text_features
        tokens = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        features: Tensor = model.text_proj(tokens[:, 0])
        return features
    if hasattr(model, "get_text_features"):
        output = model.get_text_features(input_ids=ids, attention_mask=mask)
        return output if isinstance(output, Tensor) else output.pooler_output
    output = model(input_ids=ids, attention_mask=mask)
    embeds = getattr(output, "text_embeds", None)
    return output.pooler_output if embeds is None else embeds


def _context(model: nn.Module, config: Any) -> int:
    """The longest prompt that a text tower reads, in tokens."""
    context = int(config.max_position_embeddings)
    for name, module in model.named_modules():
        # RoBERTa's kind counts positions from the one after padding's
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            context -= int(padding) + 1
    return context


def _pad(tokens: list[list[int]], padding: int, length: int, left: bool) -> tuple[Tensor, Tensor]:
    # by hand, since a tokenizer may lack a padding token; what follows CLIP's end is never read
    longest = max(length, *map(len, tokens))
    ids = torch.full((len(tokens), longest), padding)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(tokens):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return ids, mask


def _check_tokens(
    tokens: list[list[int]],
    prompts: list[str],
    names: tuple[str, ...],
    context: int,
    vocabulary: int,
    end: int | None,
) -> None:
    for index, row in enumerate(tokens):
        name = names[index * len(names) // len(tokens)]
        if len(row) > context:
            raise ResiDualError(
                f"the prompt {prompts[index]!r} of class '{name}' has {len(row)} tokens, the text "
                f"tower reads at most {context}; shorten the class name or the template."
            )
        if not row or max(row) >= vocabulary:
            raise ResiDualError(
                f"the tokenizer does not belong to this text tower: it gave {row} for the prompt "
                f"{prompts[index]!r} of class '{name}', wanted numbers below {vocabulary}."
            )
        if end is not None and end not in row:
            raise ResiDualError(
                f"the tokenizer does not end a prompt with token {end}, where this "
                f"text tower reads it (class '{name}'); use the model's own tokenizer."
            )
