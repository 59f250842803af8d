"""Text dictionaries: the list that comes with the package, one's own, and centring."""

import re
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from residual_peft import ResiDualError
from residual_peft.analysis import TextDictionary, read_texts
from residual_peft.analysis.dictionary import GENERAL_TEXTS
from residual_peft.classifiers.prompts import embed_classes
from tests.models import clip_model, clip_vision_model_with_projection, randomize
from tests.tokenizers import VOCABULARY, clip_tokenizer

TEXTS = ["a dog", "rain", "a red car", "two", "old"]


def reader(context: int = 16) -> CLIPModel:
    """A CLIP that reads single characters."""
    config: CLIPConfig = clip_model(vocab_size=VOCABULARY).config
    config.text_config.max_position_embeddings = context
    return randomize(CLIPModel(config), seed=3)


def test_texts_are_embedded_as_class_names_are() -> None:
    model, tokenizer = reader(), clip_tokenizer()
    found = TextDictionary.from_texts(model, tokenizer, TEXTS, batch_size=2)
    assert found.texts == tuple(TEXTS)
    assert len(found) == 5
    assert found.width == 16
    assert not found.centered
    truth = embed_classes(model, tokenizer, TEXTS, ("{}",))
    torch.testing.assert_close(found.embeddings, truth)
    templates = ("a {}", "{} here")
    other = TextDictionary.from_texts(model, tokenizer, TEXTS, templates)
    torch.testing.assert_close(other.embeddings, embed_classes(model, tokenizer, TEXTS, templates))


def test_repetitions_are_left_out() -> None:
    found = TextDictionary.from_texts(
        reader(), clip_tokenizer(), ["rain", "a_dog", "rain ", "a  dog", "two"]
    )
    assert found.texts == ("rain", "a dog", "two")


def test_centring() -> None:
    raw = TextDictionary(tuple("abcde"), torch.randn(5, 7).double() + 3)
    torch.testing.assert_close(raw.embeddings.norm(dim=1), torch.ones(5).double())
    found = raw.center()
    moved = raw.embeddings - raw.embeddings.mean(0)
    torch.testing.assert_close(found.embeddings, moved / moved.norm(dim=1, keepdim=True))
    assert found.centered
    assert found.center() is found
    assert found.texts == raw.texts
    options = {"tokenizer": clip_tokenizer(), "texts": TEXTS}
    straight = TextDictionary.from_texts(reader(), **options, centered=True)
    again = TextDictionary.from_texts(reader(), **options).center()
    torch.testing.assert_close(straight.embeddings, again.embeddings)
    with pytest.raises(ResiDualError, match=r"the 3 texts .* 'a' and so on, have one and the same"):
        TextDictionary(("a", "b", "c"), torch.tensor([[1, 2.0], [2, 4], [3, 6]])).center()


def test_a_file_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\ufeff# colours\nred\n\n  blue \nred\n# shapes\n\tcaf\u00e9\n", "utf-8")
    assert read_texts(path) == ["red", "blue", "caf\u00e9"]
    path.write_text("# colours\nred\n\n  blue \nred\n")
    found = TextDictionary.from_file(path, reader(), clip_tokenizer(), centered=True)
    assert found.texts == ("red", "blue")
    assert found.centered
    path.write_text("# colours\n\nred\n")
    with pytest.raises(ResiDualError, match=r"two texts, one a line, in .*mine.txt', got 1 \(em"):
        read_texts(path)
    path.write_bytes(b"red\nblau \xe4\n")
    with pytest.raises(ResiDualError, match=r"UTF-8 with one text a line at .*mine.txt', got"):
        read_texts(path)
    with pytest.raises(ResiDualError, match=r"got none that can be read.*No such file"):
        read_texts(tmp_path / "none.txt")
    with pytest.raises(ResiDualError, match="got none that can be read"):
        read_texts(tmp_path)


def test_the_bundled_list() -> None:
    texts = read_texts(GENERAL_TEXTS)
    assert 1000 <= len(texts) <= 1600
    lowered = [text.lower() for text in texts]
    single = [text for text in lowered if not text.startswith("the letter ")]
    assert len(set(single)) == len(single)
    assert max(map(len, texts)) <= 60
    assert all(re.fullmatch(r"[A-Za-z0-9 ',é\-]+", text) for text in texts)
    groups = re.split(r"^# .*\n", GENERAL_TEXTS.read_text("utf-8"), flags=re.M)
    groups = [group.split("\n") for group in groups if group.strip()]
    assert len(groups) > 30
    for group in groups:
        lines = [line for line in group if line]
        assert lines == sorted(lines)
    wanted = "dog|red|striped|handwrit|from above|x-ray|oil painting|blurry|fog|smile|three"
    assert all(any(word in text for text in texts) for word in wanted.split("|"))


def test_the_bundled_list_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    short = read_texts(GENERAL_TEXTS)[:40]
    monkeypatch.setattr("residual_peft.analysis.dictionary.read_texts", lambda path: short)
    found = TextDictionary.general(reader(context=60), clip_tokenizer(), templates=["a view: {}"])
    assert list(found.texts) == short
    assert found.embeddings.shape == (40, 16)


def test_what_a_user_can_mend() -> None:
    model, tokenizer = reader(), clip_tokenizer()
    with pytest.raises(ResiDualError, match="a list of texts for a dictionary, got one text, 'red"):
        TextDictionary.from_texts(model, tokenizer, "red")
    with pytest.raises(ResiDualError, match="none of them empty, got ' _'"):
        TextDictionary.from_texts(model, tokenizer, ["red", " _"])
    with pytest.raises(ResiDualError, match="at least two different texts, got 1"):
        TextDictionary.from_texts(model, tokenizer, ["red", "red "])
    with pytest.raises(ResiDualError, match="has 27 tokens, the text tower reads at most 16"):
        TextDictionary.from_texts(model, tokenizer, ["red", "abcdefghijklmnopqrstuvwxy"])
    with pytest.raises(ResiDualError, match=r"a text tower .* got CLIPVisionModelWithProjection"):
        TextDictionary.from_texts(clip_vision_model_with_projection(), tokenizer, TEXTS)
    with pytest.raises(ResiDualError, match=r"each of the 2 texts of a dictionary.*shape \(3, 4\)"):
        TextDictionary(("a", "b"), torch.randn(3, 4))
    with pytest.raises(ResiDualError, match="embedding of 'b' is zero or not finite"):
        TextDictionary(("a", "b"), torch.tensor([[1.0, 0], [0, 0]]))
