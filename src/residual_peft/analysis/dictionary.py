"""Texts to explain units with, and their embeddings."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..classifiers.backbones import has_text
from ..classifiers.prompts import embed_classes
from ..errors import ResiDualError
from ..towers.registry import base_model

GENERAL_TEXTS = Path(__file__).parent / "words" / "general.txt"
"""The bundled list: 1,500 short descriptions of images, one a line, in groups."""


@dataclass(frozen=True, eq=False)
class TextDictionary:
    """M texts and their embeddings, the atoms of an explanation.

    ```python
    dictionary = TextDictionary.general(model, processor)          # the bundled list
    dictionary = TextDictionary.from_file("mine.txt", model, processor).center()
    ```

    Attributes:
        texts: M texts.
        embeddings: Θ (M, d); rows are normalized when they come in.
        centered: whether the mean embedding was taken out, see `center`.
    """

    texts: tuple[str, ...]
    embeddings: Tensor
    centered: bool = False

    def __post_init__(self) -> None:
        shape = tuple(self.embeddings.shape)
        if len(shape) != 2 or shape[0] != len(self.texts) or not self.texts:
            raise ResiDualError(
                f"wanted one embedding for each of the {len(self.texts)} texts of a dictionary, "
                f"(texts, width), got shape {shape}."
            )
        lengths = self.embeddings.norm(dim=1)
        usable = lengths.isfinite() & (lengths > 0)
        if not usable.all():
            text = self.texts[int((~usable).nonzero()[0])]
            raise ResiDualError(
                f"the embedding of {text!r} is zero or not finite: it points nowhere. Leave this "
                "text out."
            )
        unit = functional.normalize(self.embeddings.detach(), dim=1)
        object.__setattr__(self, "texts", tuple(self.texts))
        object.__setattr__(self, "embeddings", unit)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def width(self) -> int:
        """The width d of the embeddings."""
        return self.embeddings.shape[1]

    def center(self) -> "TextDictionary":
        """The same texts without what they have in common: minus their mean, normalized again.

        A dual encoder's text embeddings fill a narrow cone, far from that of its images (Liang et
        al. 2022, the modality gap): in a direction that all texts share, each explains as much as
        any other, and the second text of a pair is there to take it out again. Where texts fill no
        cone (the bundled model's have a mean cosine of 0.06) centring changes little; moved into
        one (0.8), a head's first SOMP text explains 7 % of its variance raw and 26 % centred
        (`benchmarks/words.json`). The papers use raw embeddings. A dictionary that is centred
        already comes back as it is.

        Raises:
            ResiDualError: all embeddings are the same, so that nothing is left of them.
        """
        if self.centered:
            return self
        exact = self.embeddings.double()
        moved = exact - exact.mean(0)
        if (moved.norm(dim=1) < 1e-6).any():  # the mean has unit length only if all are the same
            raise ResiDualError(
                f"the {len(self)} texts of the dictionary, {self.texts[0]!r} and so on, have one "
                "and the same embedding: nothing is left without their mean. Add texts that differ."
            )
        moved = functional.normalize(moved, dim=1).to(self.embeddings.dtype)
        return TextDictionary(self.texts, moved, centered=True)

    @classmethod
    def from_texts(
        cls,
        model: nn.Module,
        tokenizer: Any,
        texts: Iterable[str],
        templates: Iterable[str] = ("{}",),
        *,
        centered: bool = False,
        batch_size: int = 256,
    ) -> "TextDictionary":
        """Embed texts with a model's text tower; one that occurs again is left out.

        Args:
            model: a dual encoder, adapted or not, or its text tower with the projection.
            tokenizer: its tokenizer, or a processor that has one.
            texts: at least two different ones; underscores count as spaces.
            templates: prompts with `{}` where the text goes, averaged as for class names.
            centered: as `center`.
            batch_size: prompts per forward pass.

        Raises:
            ResiDualError: fewer than two texts, an empty one, no text tower, or as `embed_classes`.
        """
        kept = _distinct(texts)
        if not has_text(model):
            raise ResiDualError(
                f"wanted a model with a text tower to embed a dictionary with, got "
                f"{type(base_model(model)).__name__}; pass the CLIPModel, or its "
                "CLIPTextModelWithProjection."
            )
        embeddings = embed_classes(model, tokenizer, kept, templates, batch_size=batch_size)
        found = cls(kept, embeddings.cpu())
        return found.center() if centered else found

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], model: nn.Module, tokenizer: Any, **options: Any
    ) -> "TextDictionary":
        """Embed the texts of a file, one a line; empty lines and those that start with # are none.

        Options are those of `from_texts`.

        Raises:
            ResiDualError: no such file, no text in it, or as `from_texts`.
        """
        return cls.from_texts(model, tokenizer, read_texts(path), **options)

    @classmethod
    def general(cls, model: nn.Module, tokenizer: Any, **options: Any) -> "TextDictionary":
        """Embed the bundled list of 1,500 general descriptions; `options` as for `from_file`.

        For a model of the world at large; the bundled model knows the words of its own only
        (`demo.world.attribute_texts`).
        """
        return cls.from_file(GENERAL_TEXTS, model, tokenizer, **options)


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """The texts of a file, one a line, without empty lines, repetitions and # comments.

    Raises:
        ResiDualError: the file cannot be read, or holds fewer than two texts.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ResiDualError(
            f"wanted a text file in UTF-8 with one text a line at '{path}', got none that can be "
            f"read ({error})."
        ) from error
    texts = dict.fromkeys(line.strip() for line in lines)
    found = [text for text in texts if text and not text.startswith("#")]
    if len(found) < 2:
        raise ResiDualError(
            f"wanted at least two texts, one a line, in '{path}', got {len(found)} (empty lines "
            "and those that start with # are none)."
        )
    return found


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    # as they are spoken: `embed_classes` takes underscores for spaces and refuses repetitions
    if isinstance(texts, str):
        raise ResiDualError(f"wanted a list of texts for a dictionary, got one text, {texts!r}.")
    given = list(texts)
    bad = [text for text in given if not isinstance(text, str) or not text.strip("_ \t\n")]
    if bad:
        raise ResiDualError(f"wanted texts for a dictionary, none of them empty, got {bad[0]!r}.")
    kept = tuple(dict.fromkeys(" ".join(text.replace("_", " ").split()) for text in given))
    if len(kept) < 2:
        raise ResiDualError(f"wanted at least two different texts, got {len(kept)}.")
    return kept
