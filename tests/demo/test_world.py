import re

import pytest
import torch

from benchmarks.captions import DIGIT_WORDS, caption_truth, captions, matrix
from residual_peft.demo.world import (
    ATTRIBUTES,
    COLORS,
    TEMPLATES,
    attribute_texts,
    in_good_english,
    prompts,
    sample_scenes,
)
from residual_peft.errors import ResiDualError
from tests.pairs import table


def scenes(size=400, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return sample_scenes(size, generator, **options), generator


def test_every_value_occurs_and_none_is_outside():
    scene, _ = scenes(4000)
    for name, names in ATTRIBUTES.items():
        values = scene.values[name]
        assert set(values.tolist()) - {-1} == set(range(len(names))), name


def test_an_image_shows_one_kind_of_thing():
    scene, _ = scenes()
    kinds = torch.stack([scene.values[k] >= 0 for k in ("shape", "digit", "letter")])
    assert kinds.sum(0).eq(1).all()
    assert (scene.values["texture"] >= 0).equal(scene.values["shape"] >= 0)
    several = scene.values["count"] > 0
    assert several.any()
    assert (scene.values["position"][several] == -1).all()
    assert (scene.values["shape"][several] >= 0).all()


def test_nothing_is_invisible():
    scene, _ = scenes(4000)
    color = [ATTRIBUTES["color"][i] for i in scene.values["color"]]
    background = [ATTRIBUTES["background"][i] for i in scene.values["background"]]
    pairs = set(zip(color, background, strict=True))
    assert not {("white", "white"), ("black", "black")} & pairs
    assert ("white", "black") in pairs
    assert len(COLORS) == len(ATTRIBUTES["color"])


@table("name", ATTRIBUTES)
def test_only_makes_the_attribute_apply(name):
    scene, _ = scenes(300, only=name)
    assert (scene.values[name] >= 0).all()
    assert len(scene.values[name].unique()) > 1


def test_unknown_attribute_is_refused():
    with pytest.raises(ResiDualError, match=r"wanted one of the attributes color, .*got 'mood'"):
        scenes(3, only="mood")


def test_captions_name_what_they_should_and_nothing_else():
    scene, generator = scenes()
    everything = torch.ones(len(scene), len(ATTRIBUTES), dtype=torch.bool)
    for row, text in zip(
        matrix(scene).tolist(), captions(scene, everything, generator), strict=True
    ):
        said = dict(zip(ATTRIBUTES, row, strict=True))
        for name in ("color", "background", "position", "size", "texture", "shape"):
            if said[name] >= 0:
                assert ATTRIBUTES[name][said[name]] in text
        if said["digit"] >= 0:
            assert re.search(rf"\b({said['digit']}|{DIGIT_WORDS[said['digit']]})\b", text)
        if said["count"] > 0:
            assert ATTRIBUTES["count"][said["count"]] in text
    nothing = captions(scene, ~everything, generator)
    assert all(text.endswith("an object") for text in nothing)


def test_truth_is_what_a_loop_says():
    scene, generator = scenes(60)
    named = torch.rand(60, len(ATTRIBUTES), generator=generator) < 0.4
    truth = caption_truth(scene, scene[:20], named[:20])
    rows = matrix(scene).tolist()
    for i, image in enumerate(rows):
        for j, text in enumerate(rows[:20]):
            fits = all(
                not said or wanted < 0 or wanted == got
                for said, wanted, got in zip(named[j].tolist(), text, image, strict=True)
            )
            assert truth[i, j].item() == fits
    assert truth[torch.arange(20), torch.arange(20)].all()
    assert 20 < truth.sum() < truth.numel()


def test_prompts_hold_every_value():
    assert prompts("size") == ["a small object", "a large object"]
    assert prompts("digit", TEMPLATES["digit"][2])[7] == 'a photo of the number: "7".'


def test_texts_of_all_attributes_are_told_apart():
    texts = attribute_texts()
    assert len(texts) == sum(len(ATTRIBUTES[name]) * len(TEMPLATES[name]) for name in ATTRIBUTES)
    for text, attribute in texts.items():
        assert any(
            text == in_good_english(template.format(value))
            for template in TEMPLATES[attribute]
            for value in ATTRIBUTES[attribute]
        )
    assert set(texts.values()) == set(ATTRIBUTES)


def test_texts_of_all_attributes_are_good_english():
    texts = list(attribute_texts())
    assert {"an orange object", "the shape of an arrow", "one object", "two objects"} <= set(texts)
    assert 'a photo of the letter: "Z"' in texts
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\bone \w+s\b|\.$", text)]
