import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTextModelWithProjection

from residual_peft.classifiers.prompts import embed_classes
from residual_peft.data.class_names import check_class_names
from residual_peft.errors import ResiDualError
from tests.models import Size, clip_model, randomize, text_config
from tests.pairs import table
from tests.tokenizers import VOCABULARY, clip_tokenizer

NAMES, TEMPLATES = ("cat", "dog", "polka_dot"), ("a {}.", "{}", "no {}")


def slow_embeddings(model, tokenizer, names, templates):
    """One prompt at a time, unpadded, in float64, written out."""
    model, rows = model.double(), []
    for name in names:
        vectors = []
        for template in templates:
            prompt = template.format(name.replace("_", " "))
            with torch.no_grad():
                states = model.text_model(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]))
                vector = states.last_hidden_state[0, -1] @ model.text_projection.weight.T
            vectors.append(vector / vector.norm())
        mean = torch.stack(vectors).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@table("batch_size", [1, 4, 256])
def test_embeddings_equal_one_prompt_at_a_time(batch_size):
    model, tokenizer = clip_model(vocab_size=VOCABULARY), clip_tokenizer()
    fast = embed_classes(model, tokenizer, NAMES, TEMPLATES, batch_size=batch_size)
    assert fast.dtype == torch.float32
    expected = slow_embeddings(model, tokenizer, NAMES, TEMPLATES)
    torch.testing.assert_close(fast.double(), expected, atol=1e-6, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_each_prompt_is_normalized_before_the_mean():
    model, tokenizer = clip_model(vocab_size=VOCABULARY).double(), clip_tokenizer()
    both = embed_classes(model, tokenizer, NAMES, TEMPLATES[:2])
    parts = [embed_classes(model, tokenizer, NAMES, t) for t in TEMPLATES[:2]]
    expected = torch.nn.functional.normalize(parts[0] + parts[1], dim=-1)
    torch.testing.assert_close(both, expected)


def test_separate_text_towers_and_processors_are_taken():
    model, tokenizer = clip_model(vocab_size=VOCABULARY), clip_tokenizer()
    text = CLIPTextModelWithProjection(text_config(Size(), VOCABULARY))
    text = randomize(text, seed=3)
    expected = slow_embeddings(text, tokenizer, NAMES, TEMPLATES)
    given = embed_classes(text.float(), tokenizer, NAMES, TEMPLATES)
    torch.testing.assert_close(given.double(), expected, atol=1e-6, rtol=0)
    processor = CLIPProcessor(CLIPImageProcessorPil(), tokenizer)
    same = embed_classes(model, processor, NAMES, TEMPLATES)
    torch.testing.assert_close(same, embed_classes(model, tokenizer, NAMES, TEMPLATES))


def test_a_tokenizer_without_padding_token_works():
    model, tokenizer = clip_model(vocab_size=VOCABULARY), clip_tokenizer()
    expected = embed_classes(model, tokenizer, NAMES, TEMPLATES)
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    torch.testing.assert_close(embed_classes(model, tokenizer, NAMES, TEMPLATES), expected)


def test_half_precision_towers_give_float32_unit_rows():
    model = clip_model(vocab_size=VOCABULARY).to(torch.bfloat16)
    embeddings = embed_classes(model, clip_tokenizer(), NAMES, TEMPLATES)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


@table(
    ("names", "templates", "message"),
    [
        (["cat"], TEMPLATES, r"at least two classes to tell apart, got \['cat'\]"),
        ([], TEMPLATES, "at least two classes"),
        (["cat", "dog", "cat"], TEMPLATES, "the class name 'cat' occurs 2 times"),
        (["a_b", "a b"], TEMPLATES, "'a b' occurs 2 times"),
        (["cat", " "], TEMPLATES, "none of them empty"),
        ("cat", TEMPLATES, "wanted a list of class names"),
        (["cat", 7], TEMPLATES, "wanted a list of class names"),
        (NAMES, [], "at least one prompt template"),
        (NAMES, ["a photo"], "'a photo' has no '{}'"),
        (
            ["cat", "a very long name indeed"],
            TEMPLATES,
            "class 'a very long name indeed' has 23 to",
        ),
    ],
)
def test_bad_names_templates_and_long_prompts_are_refused(names, templates, message):
    with pytest.raises(ResiDualError, match=message):
        embed_classes(clip_model(vocab_size=VOCABULARY), clip_tokenizer(), names, templates)


def test_a_prompt_of_exactly_the_context_is_taken():
    model = clip_model(vocab_size=VOCABULARY)
    embed_classes(model, clip_tokenizer(), ["a" * 14, "b"], "{}")
    with pytest.raises(ResiDualError, match="has 17 tokens, the text tower reads at most 16"):
        embed_classes(model, clip_tokenizer(), ["b", "a" * 15], "{}")


def test_a_foreign_tokenizer_is_refused():
    with pytest.raises(ResiDualError, match="does not belong to this text tower"):
        embed_classes(clip_model(vocab_size=30), clip_tokenizer(), NAMES, TEMPLATES)
    with pytest.raises(ResiDualError, match="does not end a prompt with token 99"):
        embed_classes(clip_model(vocab_size=100), clip_tokenizer(), NAMES, TEMPLATES)


def test_names_are_kept_as_they_are_given():
    assert check_class_names(n for n in ("polka_dot", "Cat", "cat")) == ("polka_dot", "Cat", "cat")
