"""Words for an adapter's components: whose dictionary, and that they are those components'."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from residual_peft import (
    ResiDualConfig,
    ResiDualError,
    ZeroShotClassifier,
    collect_with_basis,
)
from residual_peft.analysis import (
    ComponentEffect,
    TextDictionary,
    explain_adapter,
    explain_components,
)
from residual_peft.analysis.describing import dictionary_for, dictionary_if_any, words_for
from residual_peft.analysis.dictionary import read_texts
from residual_peft.classifiers.backbones import Backbone, load_backbone
from residual_peft.data import batches
from residual_peft.demo.tasks import world_task
from residual_peft.demo.world import attribute_texts
from residual_peft.hub import DEMO_MODEL, local_directory
from residual_peft.towers.units import Unit
from residual_peft.tuner import adapter_basis, gains_of


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return load_backbone()


def test_the_bundled_model_brings_the_words_that_it_knows(clip: Backbone) -> None:
    own = read_texts(Path(local_directory(DEMO_MODEL)) / "words.txt")
    assert own == list(attribute_texts())
    assert dictionary_for(clip).texts == tuple(own)


def test_a_list_or_a_file_comes_before(clip: Backbone, tmp_path: Path) -> None:
    assert dictionary_for(clip, ["a cat", "a dog"]).texts == ("a cat", "a dog")
    (tmp_path / "mine.txt").write_text("red\nblue\n")
    assert dictionary_for(clip, tmp_path / "mine.txt").texts == ("red", "blue")
    with pytest.raises(ResiDualError, match=r"one text a line at '.*none.txt'"):
        dictionary_for(clip, tmp_path / "none.txt")


def test_a_model_without_words_of_its_own_gets_the_general_list(
    clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("residual_peft.analysis.describing.WORDS_FILE", "other.txt")
    called = []
    monkeypatch.setattr(
        TextDictionary, "general", classmethod(lambda cls, *given: called.append(given))
    )
    dictionary_for(clip)
    assert called == [(clip.model, clip.tokenizer)]


def test_words_are_those_of_the_strongest_components(clip: Backbone) -> None:
    model = get_peft_model(load_backbone().model, ResiDualConfig())
    rows = collect_with_basis(model, batches(world_task("color", 200), clip.image_processor))
    gains = gains_of(model)
    gains.data = 1 + 0.3 * torch.randn(gains.shape, generator=torch.Generator().manual_seed(1))
    classifier = ZeroShotClassifier.from_text(
        model, clip.tokenizer, world_task("color", 1).features["label"].names
    )
    strongest, dictionary = explain_adapter(classifier, rows).strongest(5), dictionary_for(clip)
    words = words_for(model, [*strongest, strongest[0]], dictionary, steps=2)
    assert [(w.unit, w.component) for w in words] == [(e.unit, e.component) for e in strongest]
    for item in words:
        (truth,) = explain_components(
            adapter_basis(model), dictionary, item.unit, [item.component or 0], 2
        )
        assert item.texts == tuple(zip(truth.texts, truth.coefficients or (), strict=True))
        assert item.explained == truth.explained[-1]


def test_what_nobody_asked_for_may_be_missing(
    clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("residual_peft.analysis.describing.WORDS_FILE", "other.txt")
    monkeypatch.setattr(clip.model.config.text_config, "max_position_embeddings", 2)
    with pytest.warns(UserWarning, match="there will be no words: the prompt"):
        assert dictionary_if_any(clip) is None
    with pytest.raises(ResiDualError, match="tokens, the text tower reads at most 2"):
        dictionary_if_any(clip, ["a blue star on white", "red"])
    assert dictionary_if_any(clip, []) is None


def test_whole_units_have_no_components_to_describe(clip: Backbone) -> None:
    model = get_peft_model(load_backbone().model, ResiDualConfig.paper("coarse"))
    unit = ComponentEffect(Unit("head", 0, 0), 0, 1.0, 1.0, 1.0, 1.0)
    assert words_for(model, [unit], dictionary_for(clip)) == ()
