"""What lies beside a saved classifier: the card, whose example runs, and the picture."""

import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import get_peft_model
from PIL import Image

from residual_peft import ResiDualConfig, ZeroShotClassifier, gains_of
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.cards import _effect_of, _kept
from residual_peft.data.provenance import SplitRecord, image_digest
from residual_peft.errors import ResiDualError
from residual_peft.hub.cards import CardFacts
from residual_peft.towers.units import UNIT_KINDS
from tests.pictures import photographs

NAMES = ("a red circle", "a_blue <b>square</b>", "# nothing")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone()


def classifier_of(backbone, config):
    model = backbone.model if config is None else get_peft_model(backbone.model, config)
    return ZeroShotClassifier.from_text(
        model, backbone.tokenizer, NAMES, "{}", image_processor=backbone.image_processor
    )


def unloaded(classifier):
    classifier.model.unload()  # the backbone is shared by the tests


def test_the_example_of_the_card_runs(backbone, tmp_path, monkeypatch, capsys):
    made = classifier_of(backbone, ResiDualConfig())
    with torch.no_grad():
        gains_of(made.model).mul_(1.5)
    made.save_pretrained(tmp_path / "my adapter")
    card = (tmp_path / "my adapter" / "README.md").read_text()
    count = gains_of(made.model).numel()
    assert f"{count:,} gains" in card
    assert "one principal component of what one attention head or one MLP writes" in card
    assert "![Gains by layer and head](gains.png)" in card
    with Image.open(tmp_path / "my adapter" / "gains.png") as picture:
        assert picture.format == "PNG"
    photographs(1)[0].save(tmp_path / "photo.png")
    expected = made.predict([tmp_path / "photo.png"])
    unloaded(made)
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    exec(compile(example, "README.md", "exec"), {})
    assert expected[0].label in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "words", "picture"),
    [
        (ResiDualConfig.paper("rd_y"), "one principal component of the image embedding.", False),
        (ResiDualConfig.paper("coarse"), "scales what one attention head writes to", True),
        (
            ResiDualConfig(units=("embed", "mlp"), side="text", component_pattern={"mlp": 0.995}),
            "the token embedding or one MLP writes to the text embedding",
            True,
        ),
        (None, "which is not adapted", False),
    ],
    ids=["rd_y", "coarse", "embed and mlp", "no adapter"],
)
def test_the_card_says_what_was_adapted(backbone, tmp_path, config, words, picture):
    made = classifier_of(backbone, config)
    if config is not None:  # gains of 1 have no picture
        with torch.no_grad():
            gains_of(made.model).mul_(1.5)
    made.save_pretrained(tmp_path / "x")
    if config is not None:
        unloaded(made)
    assert words in (tmp_path / "x" / "README.md").read_text()
    assert (tmp_path / "x" / "gains.png").is_file() == picture
    kept = "the fewest with 99.5% of the variance of mlp; all of the others"
    assert config is None or _kept(config) == (kept if config.component_pattern else "all")


def test_our_card_is_renewed_and_yours_is_kept(backbone, tmp_path):
    made, card = classifier_of(backbone, None), tmp_path / "README.md"
    made.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path, card=CardFacts(license="mit", title="Another"))
    assert ModelCard.load(card).data.license == "mit"
    assert "# Another" in card.read_text()
    card.write_text("---\nlicense: cc0-1.0\n---\nMine.\n")
    made.save_pretrained(tmp_path, card=CardFacts(license="mit"))
    assert card.read_text() == "---\nlicense: cc0-1.0\n---\nMine.\n"


def test_how_images_were_shared_out_is_saved_with_the_classifier(backbone, tmp_path):
    made = classifier_of(backbone, None)
    assert made.split is None
    assert made.fitted_on == ()
    made.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare" / "run").exists()
    bare = ZeroShotClassifier.from_pretrained(tmp_path / "bare", model=backbone.model)
    assert (bare.split, bare.fitted_on) == (None, ())
    split = SplitRecord("ab" * 16, 7, {"test": 0.1, "validation": 0.2}, {"train": 70, "test": 10})
    made.split, made.fitted_on = split, tuple(image_digest(b"%d" % i) for i in range(3))
    made.save_pretrained(tmp_path / "fitted")
    again = ZeroShotClassifier.from_pretrained(tmp_path / "fitted", model=backbone.model)
    assert (again.split, again.fitted_on) == (split, made.fitted_on)
    # a classifier that takes the place of another does not inherit its images
    bare.save_pretrained(tmp_path / "fitted")
    again = ZeroShotClassifier.from_pretrained(tmp_path / "fitted", model=backbone.model)
    assert (again.split, again.fitted_on) == (None, ())


def test_a_record_of_images_of_another_kind_is_refused(backbone, tmp_path):
    made = classifier_of(backbone, None)
    made.fitted_on = (image_digest(b""),)
    made.save_pretrained(tmp_path)
    (tmp_path / "run" / "fitted_on.txt").write_text("no digest\n")
    with pytest.raises(ResiDualError, match=r"fitted_on.txt' holds something other"):
        ZeroShotClassifier.from_pretrained(tmp_path, model=backbone.model)


def test_a_form_that_peft_left_is_no_card_of_the_users(backbone, tmp_path):
    """It names the base model by its directory, which the Hub refuses; one edit makes it his."""
    made = classifier_of(backbone, ResiDualConfig(components=2))
    made.model.save_pretrained(tmp_path)
    assert "[More Information Needed]" in (tmp_path / "README.md").read_text()
    made.save_pretrained(tmp_path)
    assert "a red circle" in (tmp_path / "README.md").read_text()
    made.model.save_pretrained(tmp_path / "his")
    form = (tmp_path / "his" / "README.md").read_text()
    (tmp_path / "his" / "README.md").write_text(form.replace("# Model Card for Model ID", "# Mine"))
    made.save_pretrained(tmp_path / "his")
    assert "# Mine" in (tmp_path / "his" / "README.md").read_text()
    unloaded(made)


def test_every_kind_of_unit_has_words():
    for kind in UNIT_KINDS:
        assert _effect_of(ResiDualConfig(units=(kind,))).endswith("the image embedding")
