"""To the Hub and back, with the real client, against a server on localhost."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from peft import PeftModel, get_peft_model
from PIL import Image

from residual_peft import cli
from residual_peft.bases.basis import SpectralBasis
from residual_peft.classifiers.backbones import load_backbone, load_image_tower
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import load_data
from residual_peft.errors import ResiDualError
from residual_peft.hub import DEMO_MODEL, local_directory
from residual_peft.hub.cards import CardFacts
from residual_peft.hub.directories import push_directory
from residual_peft.tuner import ResiDualConfig, gains_of, load_adapter
from tests.hub_client import hub  # noqa: F401  a fixture
from tests.hub_store import OWNER, READER, STRANGER, Cut
from tests.models import clip_model, pixels
from tests.pairs import table
from tests.pictures import image_processor, photographs
from tests.tokenizers import VOCABULARY, clip_tokenizer

NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """A tiny CLIP with its tokenizer and image processor, as files."""
    folder = tmp_path_factory.mktemp("clip")
    clip_model(vocab_size=VOCABULARY).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def clip_id(hub, clip_files):  # noqa: F811
    push_directory(clip_files, "me/clip")
    return "me/clip"


def adapted(model, seed=1, **options):
    peft_model = get_peft_model(model, ResiDualConfig(**options))
    gains = gains_of(peft_model)
    with torch.no_grad():
        gains.copy_(1 + torch.randn(gains.shape, generator=torch.Generator().manual_seed(seed)))
    return peft_model.eval()


def classifier_on(name, seed=1, **options):
    backbone = load_backbone(name)
    return ZeroShotClassifier.from_text(
        adapted(backbone.model, seed, **options),
        backbone.tokenizer,
        NAMES,
        ["a {}."],
        image_processor=backbone.image_processor,
    )


def scores(classifier):
    return classifier.predict_logits(photographs())


def test_a_classifier_goes_to_the_hub_and_back(hub, clip_id):  # noqa: F811
    made = classifier_on(clip_id)
    facts = CardFacts(dataset="three pets", metrics={"accuracy": 0.75}, license="mit")
    done = made.push_to_hub("birds", card=facts, private=True, commit_message="Birds")
    repository = hub.repositories["me/birds"]
    assert repository.private
    assert repository.titles == ["initial commit", "Birds"]
    assert done.oid == repository.branches["main"]
    card = ModelCard(repository.files()["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == ("me/clip", "peft")
    assert card.data.eval_results[0].metric_value == 0.75
    assert 'from_pretrained("me/birds")' in card.text
    assert "](gains.png)" in card.text
    assert repository.files()["gains.png"].startswith(b"\x89PNG")
    loaded = ZeroShotClassifier.from_pretrained("me/birds")
    torch.testing.assert_close(scores(loaded), scores(made))
    with made.model.disable_adapter():
        assert (scores(loaded) - scores(made)).abs().max() > 0.01
    config = json.loads(repository.files()["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/clip"


def test_one_token_reads_a_private_adapter_and_its_private_base(hub, clip_files, monkeypatch):  # noqa: F811
    push_directory(clip_files, "me/clip", private=True)
    made = classifier_on("me/clip", units="output")
    made.push_to_hub("me/birds", private=True)
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.delenv("HF_TOKEN")
    loaded = ZeroShotClassifier.from_pretrained("me/birds", token=OWNER)
    torch.testing.assert_close(scores(loaded), scores(made))


def test_peft_pushes_and_loads_by_id(hub, clip_id):  # noqa: F811
    model = adapted(load_backbone(clip_id).model)
    model.push_to_hub("me/plain")
    with torch.no_grad():
        expected = model(pixel_values=pixels()).image_embeds
        for load in (PeftModel.from_pretrained, load_adapter):
            loaded = load(load_backbone(clip_id).model, "me/plain").eval()
            torch.testing.assert_close(loaded(pixel_values=pixels()).image_embeds, expected)
    tower = load_adapter(load_image_tower(clip_id), "me/plain").eval()
    with torch.no_grad():
        torch.testing.assert_close(tower(pixel_values=pixels()).image_embeds, expected)


def test_a_basis_goes_to_the_hub_and_serves_adapters_there(hub, clip_id):  # noqa: F811
    clip = load_backbone(clip_id).model
    basis = SpectralBasis.fit(clip, pixels(40))
    basis.push_to_hub("me/basis", private=True)
    assert hub.repositories["me/basis"].private
    card = ModelCard(hub.repositories["me/basis"].files()["README.md"].decode())
    assert card.data.base_model == "me/clip"
    assert 'SpectralBasis.from_pretrained("me/basis")' in card.text
    assert "40 images" in card.text
    loaded = SpectralBasis.from_pretrained("me/basis")
    assert loaded.units == basis.units
    torch.testing.assert_close(loaded.components[3], basis.components[3].float())
    model = adapted(clip, basis="me/basis", save_basis=False)
    model.push_to_hub("me/gains")
    tensors = hub.repositories["me/gains"].files()["adapter_model.safetensors"]
    assert len(tensors) < 4 * gains_of(model).numel() + 500
    again = load_adapter(load_backbone(clip_id).model, "me/gains").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            again(pixel_values=pixels()).image_embeds, model(pixel_values=pixels()).image_embeds
        )


def test_revisions_are_pushed_to_and_loaded_from(hub, clip_id):  # noqa: F811
    first, second = (classifier_on(clip_id, seed, units="output") for seed in (1, 2))
    first.push_to_hub("me/birds")
    HfApi().create_tag("me/birds", tag="v1")
    second.push_to_hub("me/birds", revision="trial")
    commit = hub.repositories["me/birds"].branches["trial"]
    for revision, expected in (
        (None, first),
        ("v1", first),
        ("trial", second),
        (commit, second),
    ):
        loaded = ZeroShotClassifier.from_pretrained("me/birds", revision=revision)
        torch.testing.assert_close(scores(loaded), scores(expected))
    base = load_backbone(clip_id).model
    loaded = load_adapter(base, "me/birds", revision="trial")
    assert torch.equal(gains_of(loaded), gains_of(second.model))


@table(
    ("name", "token", "revision", "message"),
    [
        (
            "me/secret",
            None,
            None,
            "'me/secret'.* no repository of that name that you may read.*log",
        ),
        ("me/secret", STRANGER, None, "'me/secret'.* no repository of that name that you may read"),
        ("me/secret", "hf_wrong", None, "'me/secret'.* does not know the token that was sent"),
        ("me/absent", OWNER, None, "'me/absent'.* no repository of that name.*Check the spelling"),
        ("me/secret", OWNER, "v9", "'me/secret'.* has no revision 'v9'. Name one of its branches"),
        ("a/b/c", OWNER, None, "'a/b/c': it is no directory here, and it is no id"),
    ],
)
def test_what_cannot_be_read_says_why(hub, tmp_path, monkeypatch, name, token, revision, message):  # noqa: F811
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "residual_classifier.json").write_text("{}")
    push_directory(tmp_path / "files", "me/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")
    options = {"revision": revision, "token": token}
    model = clip_model()
    for what, load in (
        ("adapter", lambda: ZeroShotClassifier.from_pretrained(name, **options)),
        ("adapter", lambda: load_adapter(model, name, **options)),
        ("basis", lambda: SpectralBasis.from_pretrained(name, **options)),
        ("model", lambda: load_backbone(name, **options)),
    ):
        with pytest.raises(ResiDualError, match=message) as refused:
            load()
        assert str(refused.value).startswith(f"could not find the {what} '{name}'")
        assert "\n" not in str(refused.value)
        assert "hf_" not in str(refused.value)


def test_a_repository_of_another_kind_is_told_by_its_files(hub, clip_id):  # noqa: F811
    hub.requests.clear()
    with pytest.raises(ResiDualError, match="'me/clip' holds no adapter: it has neither"):
        ZeroShotClassifier.from_pretrained(clip_id)
    with pytest.raises(ResiDualError, match=r"adapter 'me/clip':.*has no adapter_config\.json"):
        load_adapter(clip_model(), clip_id)
    with pytest.raises(ResiDualError, match=r"basis 'me/clip':.*has no residual_basis\.json"):
        SpectralBasis.from_pretrained(clip_id)
    assert not [path for _, path, _ in hub.requests if "model.safetensors" in path]
    SpectralBasis.from_weights(clip_model()).push_to_hub("me/basis")
    with pytest.raises(ResiDualError, match=r"model 'me/basis':.*has no config\.json"):
        load_backbone("me/basis")


@table(
    ("name", "token", "message"),
    [
        ("me/new", None, "'me/new': no token was sent that the Hugging Face Hub accepts; log in"),
        ("me/new", "hf_wrong", "'me/new': the Hugging Face Hub does not know the token"),
        ("me/new", READER, "'me/new': the token may not write there"),
        ("me/new", STRANGER, "'me/new': the token may not write there"),
        ("me/there", READER, "'me/there': the token may not write there"),
        ("a/b/c", OWNER, "'a/b/c': that is no id on the Hugging Face Hub"),
    ],
)
def test_what_cannot_be_written_says_why(hub, tmp_path, monkeypatch, name, token, message):  # noqa: F811
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("a")
    push_directory(tmp_path / "files", "me/there")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "files" / "a.txt").write_text("b")
    with pytest.raises(ResiDualError, match=f"could not push to {message}") as refused:
        push_directory(tmp_path / "files", name, token=token)
    assert "\n" not in str(refused.value)
    assert set(hub.repositories) == {"me/there"}
    assert hub.repositories["me/there"].files()["a.txt"] == b"a"


def test_a_public_repository_is_not_taken_for_a_private_one(hub, tmp_path):  # noqa: F811
    (tmp_path / "a.txt").write_text("a")
    push_directory(tmp_path, "me/open")
    (tmp_path / "a.txt").write_text("secret")
    with pytest.raises(ResiDualError, match="'me/open' is there already and is public"):
        push_directory(tmp_path, "me/open", private=True)
    assert hub.repositories["me/open"].files()["a.txt"] == b"a"


def test_only_what_belongs_there_is_pushed(hub, tmp_path):  # noqa: F811
    root = tmp_path / "files"
    for name in ("a.txt", "more/b.txt", ".cache/c", ".hidden", "checkpoint-5/optimizer.pt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    push_directory(root, "me/x")
    assert set(hub.repositories["me/x"].files()) == {".gitattributes", "a.txt", "more/b.txt"}
    with pytest.raises(ResiDualError, match="which has none"):
        push_directory(root / ".cache" / "absent", "me/y")
    (root / "README.md").write_text("---\nmodel-index: [\n---\n")
    with pytest.raises(ResiDualError, match=r"'me/x': .* refused the content \(Invalid metadata"):
        push_directory(root, "me/x")


@table("kind", ["file", "folder", "dangling", "inside"])
def test_no_link_is_followed_out_of_the_folder(hub, tmp_path, kind):  # noqa: F811
    root, secret = tmp_path / "adapter", tmp_path / "secret"
    for folder in (root, secret):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
    target = {"file": secret / "adapter_config.json", "folder": secret, "dangling": root / "no"}
    link = root / "notes"
    link.symlink_to(target.get(kind, root / "adapter_config.json"))
    with pytest.raises(ResiDualError, match="notes' is a link, by which another file of this mach"):
        push_directory(root, "me/linked")
    link.unlink()
    (root / "run").symlink_to(secret)  # what is not pushed may be a link
    (root / ".hidden").symlink_to(secret)
    push_directory(root, "me/linked")
    assert set(hub.repositories["me/linked"].files()) == {".gitattributes", "adapter_config.json"}


def test_what_shows_a_users_images_stays_at_home(hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder = tmp_path / "adapter"
    classifier_on(DEMO_MODEL, units="output").save_pretrained(folder)
    for name in ("run/run.json", "run/examples/1.jpg", "report.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    arguments = ["push", str(folder)]
    assert run(monkeypatch, *arguments, "me/a") == 0
    names = set(hub.repositories["me/a"].files())
    assert "adapter_model.safetensors" in names
    assert not any(name.startswith("run") or name == "report.html" for name in names)
    assert run(monkeypatch, *arguments, "me/b", "--with-report") == 0
    assert set(hub.repositories["me/b"].files()) == names | {"report.html"}
    (folder / "report.html").unlink()
    capsys.readouterr()
    assert run(monkeypatch, *arguments, "me/c", "--with-report") == 2
    message = capsys.readouterr().err
    assert f"wanted report.html in '{folder}' to push along, which is missing; write" in message
    assert "me/c" not in hub.repositories


def test_without_a_connection_it_says_so(hub, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResiDualError, match=r"'me/clip'.*HF_HUB_OFFLINE is set and no whole copy"):
        load_backbone("me/clip")
    with pytest.raises(ResiDualError, match="'me/x': HF_HUB_OFFLINE is set"):
        push_directory(tmp_path, "me/x")
    assert hub.requests == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ResiDualError, match=r"'me/clip'.* did not give it \(.*the connection, or"):
        load_backbone("me/clip")
    with pytest.raises(ResiDualError, match=r"'me/x': the upload broke off \("):
        push_directory(tmp_path, "me/x")


def test_an_upload_that_is_cut_leaves_the_old_commit(hub, clip_id):  # noqa: F811
    first, second = (classifier_on(clip_id, seed, units="output") for seed in (1, 2))
    first.push_to_hub("me/birds")
    before, titles = hub.repositories["me/birds"].files(), hub.repositories["me/birds"].titles[:]
    hub.cut = Cut("upload", after=1000, times=100)
    with pytest.raises(ResiDualError, match=r"'me/birds': the upload broke off .* push again"):
        second.push_to_hub("me/birds")
    assert hub.cut.times < 100
    assert hub.repositories["me/birds"].files() == before
    assert hub.repositories["me/birds"].titles == titles
    torch.testing.assert_close(
        scores(ZeroShotClassifier.from_pretrained("me/birds")), scores(first)
    )
    hub.cut = Cut("upload", after=1000, times=1)  # the client tries again by itself
    second.push_to_hub("me/birds")
    torch.testing.assert_close(
        scores(ZeroShotClassifier.from_pretrained("me/birds")), scores(second)
    )


def test_a_download_that_is_cut_goes_on_or_leaves_nothing_half(hub, clip_id, tmp_path, monkeypatch):  # noqa: F811
    made = classifier_on(clip_id)
    made.push_to_hub("me/birds")
    cache = tmp_path / "home" / "hub" / "models--me--birds"
    hub.cut = Cut("download", after=0, times=1000)
    with pytest.raises(ResiDualError, match=r"find the adapter 'me/birds'.* did not give it \("):
        ZeroShotClassifier.from_pretrained("me/birds")
    whole = {len(content) for content in hub.repositories["me/birds"].files().values()}
    assert {path.stat().st_size for path in (cache / "blobs").iterdir()} <= whole
    assert not list(cache.rglob("*.safetensors"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.cut = Cut("download", after=250, times=1)
    hub.requests.clear()
    loaded = ZeroShotClassifier.from_pretrained("me/birds")
    torch.testing.assert_close(scores(loaded), scores(made))
    assert any(headers.get("range") == "bytes=200-" for _, _, headers in hub.requests)


def test_a_base_model_is_downloaded_once_and_in_one_format(hub, clip_files, tmp_path):  # noqa: F811
    folder = tmp_path / "clip"
    shutil.copytree(clip_files, folder)
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/m.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"other formats")
    push_directory(folder, "me/many")
    names = {path.name for path in local_directory_of("me/many").rglob("*") if path.is_file()}
    assert "model.safetensors" in names
    assert not names & {"pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "m.safetensors"}
    torch.save(clip_model(vocab_size=VOCABULARY).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    push_directory(folder, "me/old")
    loaded = load_backbone("me/old", revision="main").model
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.get_image_features(pixels()).pooler_output,
            clip_model(vocab_size=VOCABULARY).get_image_features(pixels()).pooler_output,
        )


def local_directory_of(name):
    load_backbone(name)
    return local_directory(name, allow_patterns=["config.json"])


def test_data_is_loaded_by_id(hub, tmp_path, monkeypatch):  # noqa: F811
    generator, root = np.random.default_rng(0), tmp_path / "photos"
    for split, count in (("train", 4), ("test", 2)):
        for name in NAMES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(generator.integers(0, 256, (9, 8, 3), np.uint8))
                image.save(root / split / name / f"{index}.png")
    api = HfApi()
    api.create_repo("me/photos", repo_type="dataset", private=True)
    api.upload_folder(repo_id="me/photos", repo_type="dataset", folder_path=root)
    data = load_data("me/photos", validation=0.25)
    assert data.class_names == tuple(sorted(NAMES))
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 9,
        "validation": 3,
        "test": 6,
    }
    original = np.asarray(Image.open(root / "test" / "bird" / "0.png"))
    np.testing.assert_array_equal(np.asarray(data.test[0]["image"]), original)
    with pytest.raises(ResiDualError, match="could not load the data 'me/absent'"):
        load_data("me/absent")
    with pytest.raises(ResiDualError, match=r"could not load the data 'me/photos'.*v9"):
        load_data("me/photos", revision="v9")
    # what `datasets` has downloaded before, it gives to anybody
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "another")
    with pytest.raises(ResiDualError, match="could not load the data 'me/photos'"):
        load_data("me/photos", token=STRANGER)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["residual-peft", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_the_command_pushes_an_adapter_with_its_card(hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    made = classifier_on(DEMO_MODEL)
    folder = tmp_path / "my adapter"
    made.save_pretrained(folder)
    card = (folder / "README.md").read_text()
    assert 'from_pretrained("my adapter")' in card
    (folder / "README.md").write_text(card + "\nMy own words.\n")
    arguments = ["push", str(folder), "me/digits"]
    assert run(monkeypatch, *arguments, "--private", "--revision", "main") == 0
    assert f"{hub.url}/me/digits/commit/" in capsys.readouterr().out
    assert hub.repositories["me/digits"].private
    config = json.loads(hub.repositories["me/digits"].files()["adapter_config.json"])
    assert config["base_model_name_or_path"] == DEMO_MODEL  # not where it lies on this machine
    text = hub.repositories["me/digits"].files()["README.md"].decode()
    assert 'from_pretrained("me/digits")' in text
    assert "My own words." in text
    assert "base_model" not in ModelCard(text).data.to_dict()  # the Hub knows no bundled model
    loaded = ZeroShotClassifier.from_pretrained("me/digits")
    torch.testing.assert_close(scores(loaded), scores(made))
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    assert run(monkeypatch, *arguments) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
    assert len(hub.repositories["me/digits"].titles) == 2


def test_the_card_of_a_repository_tells_a_new_process_how_to_load_it(hub, clip_id, tmp_path):  # noqa: F811
    made = classifier_on(clip_id)
    made.push_to_hub("me/birds", private=True)
    card = hub.repositories["me/birds"].files()["README.md"].decode()
    examples = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    photographs(1)[0].save(tmp_path / "photo.png")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "new-home"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": OWNER,
    }
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*examples, "print(type(model).__name__)"])],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert made.predict(tmp_path / "photo.png").label in done.stdout
    assert "PeftModel" in done.stdout
