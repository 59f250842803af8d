"""Cards: what the Hub reads comes back as it was written, what people read is what was said."""

import ast
import re
import string
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from residual_peft.errors import ResiDualError
from residual_peft.hub.cards import (
    CardFacts,
    adapter_card,
    as_code,
    as_text,
    basis_card,
)
from residual_peft.hub.directories import DEMO_MODEL
from tests.pairs import table

FACTS = CardFacts(
    title="Three pets: 'cats' & \"dogs\"",
    dataset="pets",
    dataset_id="me/pets",
    split="validation",
    metrics={"accuracy": 0.875, "mean_per_class_recall": 0.5},
    metrics_before={"accuracy": 0.25},
    test_images=1200,
    training_data="9 photos",
    basis_data="none",
    seed=3,
    license="mit",
)


def adapter(facts=None, **changes):
    known = {
        "adapter": "me/adapter",
        "base_model": "me/clip",
        "base_class": "CLIPModel",
        "class_names": ("cat", "dog"),
        "templates": ("a {}.",),
        "peft_type": "RESIDUAL_PEFT",
        "gains": 1578,
        "effect": "one principal component of what one head writes",
        "basis": "40 images",
        "figure": "gains.png",
    }
    return replace(facts or CardFacts(), **known | changes)


class Page(HTMLParser):
    """The text of a rendered card by list item or paragraph, and the tags in it."""

    def __init__(self, card: str) -> None:
        super().__init__()
        self.tags, self.texts = [], [""]
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(card))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *(value for name, value in attributes if name in ("href", "src"))))
        if tag in ("li", "p", "h1", "h2"):
            self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data


def page_of(card: str) -> Page:
    return Page(ModelCard(card).text)


def test_the_hub_reads_what_was_meant():
    data = ModelCard(adapter_card(adapter(FACTS))).data
    assert data.base_model == "me/clip"
    assert data["base_model_relation"] == "adapter"
    assert (data.library_name, data.license, data.datasets) == ("peft", "mit", ["me/pets"])
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert "residual-peft" in data.tags
    assert data.model_name == FACTS.title
    found = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == FACTS.metrics
    result = found["accuracy"]
    assert (result.dataset_type, result.dataset_name) == ("me/pets", "pets")
    assert (result.dataset_split, result.task_type) == ("validation", data.pipeline_tag)


def test_people_read_what_was_meant():
    page = page_of(adapter_card(adapter(FACTS)))
    assert page.texts[1].strip() == FACTS.title
    whole = "\n".join(page.texts)
    for words in (
        "1,578 gains for me/clip",
        "each gain scales one principal component of what one head writes",
        "Measured on 1,200 images of pets (validation split)",
        "classes (2): cat, dog",
        "prompt templates: a {}.",
        "the basis was fitted on: none",
        "training data: 9 photos",
        "licence: mit",
        "seed: 3",
    ):
        assert words in whole
    cells = " ".join(whole.split())
    assert "accuracy 0.250 0.875 mean per-class recall – 0.500" in cells
    assert ("img", "gains.png") in page.tags
    assert ("a", "https://huggingface.co/me/clip") in page.tags
    for moved in (False, True):  # a head leaves gains at 1, unless they were fitted before
        beside = page_of(adapter_card(adapter(head="9 coordinates", moved=moved)))
        whole = "\n".join(beside.texts)
        assert "A class head for me/clip: a linear map from 9 coordinates to the classes." in whole
        assert ("1,578 gains for" in whole, "all stand at 1" in whole) == (moved, not moved)


def test_what_is_not_known_is_not_said():
    bare = adapter(peft_type=None, gains=None, effect=None, basis=None, figure=None, templates=())
    card = adapter_card(bare)
    data, page = ModelCard(card).data, page_of(card)
    assert data.library_name == "transformers"
    assert data.eval_results is None
    assert data.license is None
    assert "not stated" in "".join(page.texts)
    assert not [tag for tag in page.tags if tag[0] in ("img", "table")]
    assert "None" not in card
    other = page_of(adapter_card(adapter(peft_type="LORA", gains=None, figure=None)))
    assert "An adapter of type LORA for me/clip" in "".join(other.texts)


WHOLE = {
    "training_data": "9 photos",
    "basis_data": "40 images",
    "seed": 3,
    "license": "mit",
}
SHAPES = {
    "all": (adapter(**WHOLE), "classes prompt base training the seed: licence:"),
    "bare": (adapter(basis=None), "classes prompt base licence:"),
    "no templates": (adapter(templates=(), seed=0), "classes base the seed: licence:"),
    "several labels": (
        adapter(multi_label=True, templates=("a {}.", "{}", "`{}`")),
        "classes labels: prompt base the licence:",
    ),
    "means": (
        adapter(base_class="Dinov2Model", templates=(), training_data="x"),
        "classes classes: base training the licence:",
    ),
    "a local model": (adapter(base_model="/a/b"), "classes prompt base the licence:"),
    "not adapted": (
        adapter(peft_type=None, gains=None, effect=None, basis=None, figure=None),
        "classes prompt base licence:",
    ),
    "measured": (adapter(FACTS), "classes prompt base training the seed: licence:"),
}


@table(("facts", "starts"), SHAPES.values(), ids=SHAPES)
def test_the_details_are_one_list_with_an_item_for_each(facts, starts):
    """As a renderer of Markdown reads it: `trim_blocks` takes a newline that a block ends with."""
    body = ModelCard(adapter_card(facts)).text
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    kinds = [token.type for token in tokens]
    assert kinds.count("bullet_list_open") == 1
    titles = [tokens[i + 1].content for i, kind in enumerate(kinds) if kind == "heading_open"]
    assert titles[1:] == ["Use", "Details"]
    first, last = kinds.index("bullet_list_open"), kinds.index("bullet_list_close")
    assert last == len(kinds) - 1
    items = [
        token for token in tokens[first:last] if token.type == "paragraph_open" and token.hidden
    ]
    texts = [token.content for token in tokens[first:last] if token.type == "inline"]
    assert [text.split()[0] for text in texts] == starts.split()
    assert len(items) == len(texts)  # a tight list: no blank line between its items
    assert not [text for text in texts if "\n" in text]
    pictures = [t for t in tokens if t.type == "inline" and t.content.startswith("![")]
    assert len(pictures) == (facts.figure is not None)
    assert kinds.count("table_open") == (1 if facts.metrics else 0)
    assert kinds.count("fence") == (2 if facts.peft_type and facts.base_model == "me/clip" else 1)


@table("name", ["/home/someone/models/clip-9", "C:\\users\\clip-9", "clip-9", None])
def test_a_path_is_no_name_for_others(name):
    card = adapter_card(adapter(base_model=name))
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert "someone" not in card
    assert "add `model=`" in card
    assert "PeftModel" not in card


def test_the_bundled_model_is_no_repository():
    card = adapter_card(adapter(base_model=DEMO_MODEL))
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert "the CLIP that comes with residual-peft" in card
    assert "add `model=`" not in card
    assert f'"{DEMO_MODEL}"' not in card  # transformers could not load it by that name


SPECIAL = (
    "<script>alert(1)</script>",
    "a_b*c*d__e__",
    "`x` ``y``",
    "# not a title",
    "---\nlicense: evil\n---",
    "| a | b |",
    "[text](http://example.com)",
    "![image](http://example.com/x.png)",
    "&lt; &amp; <",
    "http://example.com www.example.com me@example.com",
    "{{ 7 * 7 }} {% raw %}",
    "\\*back\\slash\\",
    "~~gone~~ $x^2$ :smile: [^1]",
    "1. one",
    "日本語, and more",
)


def class_line(names):
    page = page_of(adapter_card(adapter(class_names=names)))
    return page, next(text for text in page.texts if text.startswith("classes ("))


def test_class_names_stay_text():
    page, line = class_line(SPECIAL)
    shown = ", ".join(" ".join(name.split()) for name in SPECIAL)
    assert line.strip() == f"classes ({len(SPECIAL)}): {shown}"
    plain, _ = class_line(("cat", "dog"))
    assert page.tags == plain.tags


names = st.text(st.sampled_from(string.printable + "äß語\u2028"), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=names.filter(lambda name: name.strip()))
def test_any_text_stays_text(name):
    expected = " ".join(name.split())
    for shown, tags in ((as_text(name), []), (as_code(name), [("code",)])):
        page = Page(f"- is: {shown}")
        assert page.texts[-1].strip().removeprefix("is: ").strip() == expected
        assert page.tags == [("ul",), ("li",), *tags]


@table("location", ["me/x", 'a "b" \\n', "``` \n # '", "ä"])
def test_the_example_is_python_whatever_the_name(location):
    card = adapter_card(adapter(adapter=location))
    for block in re.findall(r"```python\n(.*?)\n```", card, re.DOTALL):
        calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
        texts = [a.value for call in calls for a in call.args if isinstance(a, ast.Constant)]
        assert location in texts


def test_what_makes_no_card_is_refused():
    with pytest.raises(ResiDualError, match="wanted the dataset beside the metrics"):
        CardFacts(metrics={"accuracy": 1.0})
    with pytest.raises(ResiDualError, match="makes no valid card"):
        adapter_card(adapter(dataset="d", metrics={"accuracy": float("nan")}))


def test_a_basis_has_a_card_too():
    card = basis_card(
        location="me/basis",
        model="me/clip",
        units={"head": 4, "mlp": 2},
        components=1234,
        basis="9 images",
    )
    data, page = ModelCard(card).data, page_of(card)
    assert data.base_model == "me/clip"
    assert "residual-peft" in data.tags
    text = " ".join("".join(page.texts).split())
    assert "1,234 directions of 4 head units, 2 mlp units. Fitted on 9 images." in text
    assert 'SpectralBasis.from_pretrained("me/basis")' in text
