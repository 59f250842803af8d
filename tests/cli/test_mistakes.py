"""What a user can mend is one line and exit status 2 on the command line, never a traceback."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import BertConfig, BertModel

from residual_peft import cli
from residual_peft.cli import commands
from tests.models import clip_model
from tests.pairs import table
from tests.pictures import image_processor
from tests.tokenizers import VOCABULARY
from tests.training_case import save_clip

Mistake = Callable[[Path, Path], None]


def photos(root: Path, names=("cat", "dog"), count: int = 12) -> None:
    generator = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02}.png")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A model, images and an adapter fitted to them."""
    root = tmp_path_factory.mktemp("saved")
    save_clip(root / "model")
    photos(root / "photos")
    return root


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["residual-peft", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return stopped.value.code


def fit(root: Path) -> int:
    return run(
        *("fit", "--model", str(root / "model"), "--data", str(root / "photos")),
        *("--out", str(root / "adapter"), "--template", "a {}."),
    )


def the_one_line(capsys) -> str:
    """The message; progress bars, which share the stream, have lines of their own."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    messages = [line for line in lines if line.startswith("residual-peft: ")]
    assert messages == lines[-1:]
    return messages[0]


def no_images(photos_: Path, model: Path) -> None:
    shutil.rmtree(photos_)
    photos_.mkdir()


def unreadable_image(photos_: Path, model: Path) -> None:
    for path in (photos_ / "cat").iterdir():
        path.write_bytes(b"no image")


def cut_image(photos_: Path, model: Path) -> None:
    for path in (photos_ / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:300])


def nan_pixels(photos_: Path, model: Path) -> None:
    shutil.rmtree(photos_ / "cat")
    (photos_ / "cat").mkdir()
    for index in range(12):
        pixels = np.full((20, 20), np.nan, np.float32)
        Image.fromarray(pixels).save(photos_ / "cat" / f"{index}.tiff")


def one_class(photos_: Path, model: Path) -> None:
    shutil.rmtree(photos_ / "cat")


def same_name_twice(photos_: Path, model: Path) -> None:
    photos(photos_, ("sea_lion", "sea lion"))


def another_architecture(photos_: Path, model: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
    BertModel(BertConfig(intermediate_size=16, **sizes)).save_pretrained(model)


def cut_weights(photos_: Path, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def another_image_size(photos_: Path, model: Path) -> None:
    image_processor(24).save_pretrained(model)


@table(
    ("mistake", "message"),
    [
        (no_images, "found no images in "),
        (unreadable_image, ".png' (not an image that PIL knows)"),
        (cut_image, "12 of the 24 images of "),
        (nan_pixels, "has NaN or infinite pixels; wanted finite numbers."),
        (one_class, "wanted at least two classes to tell apart, got ['dog']."),
        (same_name_twice, "the class name 'sea lion' occurs 2 times"),
        (another_architecture, "its model_type is 'bert', and "),
        (cut_weights, "got none that loads (Error while deserializing header"),
        (another_image_size, "this model does not take images of 24 x 24 pixels ("),
    ],
)
def test_fit_says_it_in_one_line_and_writes_nothing(
    saved: Path, tmp_path: Path, capsys, mistake: Mistake, message: str
) -> None:
    for name in ("model", "photos"):
        shutil.copytree(saved / name, tmp_path / name)
    mistake(tmp_path / "photos", tmp_path / "model")
    assert fit(tmp_path) == 2
    assert message in the_one_line(capsys)
    assert not (tmp_path / "adapter").exists()


@pytest.fixture(scope="module")
def fitted(saved: Path) -> Path:
    assert fit(saved) == 0
    return saved


def cut_short(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def no_safetensors(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"PK\x03\x04" + bytes(500))


@table(
    ("mistake", "message"),
    [
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "which is missing: "),
        (lambda adapter: (adapter / "adapter_config.json").unlink(), "which is missing."),
        (lambda adapter: (adapter / "residual_classifier.json").unlink(), "it holds no classes."),
        (cut_short, "is not a whole safetensors file ("),
        (no_safetensors, "is not a whole safetensors file ("),
        (shutil.rmtree, "could not find the adapter "),
    ],
    ids=["no weights", "no config", "no classes", "cut short", "another kind", "no directory"],
)
def test_eval_names_what_is_wrong_with_an_adapter(
    fitted: Path, tmp_path: Path, capsys, mistake: Callable[[Path], None], message: str
) -> None:
    adapter = Path(shutil.copytree(fitted / "adapter", tmp_path / "adapter"))
    mistake(adapter)
    assert run("eval", str(adapter), "--data", str(fitted / "photos")) == 2
    assert message in the_one_line(capsys)


def test_eval_refuses_a_base_model_that_has_changed(fitted: Path, tmp_path: Path, capsys) -> None:
    adapter = Path(shutil.copytree(fitted / "adapter", tmp_path / "adapter"))
    model = Path(shutil.copytree(fitted / "model", tmp_path / "model"))
    record = adapter / "residual_classifier.json"
    record.write_text(record.read_text().replace(str(fitted / "model"), str(model)))
    clip_model(vocab_size=VOCABULARY, seed=1).save_pretrained(model)
    assert run("eval", str(adapter), "--data", str(fitted / "photos")) == 2
    assert "belongs to the weights of" in the_one_line(capsys)
    cut_weights(fitted, model)
    assert run("eval", str(adapter), "--data", str(fitted / "photos")) == 2
    assert f"could not load the base model '{model}'" in the_one_line(capsys)


def test_eval_refuses_other_classes(fitted: Path, tmp_path: Path, capsys) -> None:
    photos(tmp_path / "photos", ("cat", "cow"))
    arguments = (str(fitted / "adapter"), "--data", str(tmp_path / "photos"))
    assert run("eval", *arguments) == 2
    assert "the adapter's classes (cat, dog), got images of cow," in the_one_line(capsys)


def no_record(adapter: Path) -> None:
    shutil.rmtree(adapter / "run")


def cut_record(adapter: Path) -> None:
    path = adapter / "run" / "run.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def another_files_record(adapter: Path) -> None:
    (adapter / "run" / "run.json").write_text('{"loss": [1, 2]}')


def a_directory_in_the_way(adapter: Path) -> None:
    (adapter / "report.html").unlink()
    (adapter / "report.html").mkdir()


@table(
    ("mistake", "message"),
    [
        (no_record, "wanted a directory with the record of a fit (run/run.json), got "),
        (shutil.rmtree, "which has none; `residual-peft fit` leaves one beside its adapter."),
        (cut_record, "is not a whole safetensors file ("),
        (another_files_record, "run.json', field stamp: wanted text, got none."),
        (a_directory_in_the_way, "wanted a file to write the report to, got the directory "),
    ],
)
def test_report_names_what_is_wrong_with_a_directory(
    fitted: Path, tmp_path: Path, capsys, mistake: Callable[[Path], None], message: str
) -> None:
    adapter = Path(shutil.copytree(fitted / "adapter", tmp_path / "adapter"))
    mistake(adapter)
    assert run("report", str(adapter)) == 2
    assert message in the_one_line(capsys)


def test_names_are_no_markup_and_move_no_cursor(capsys) -> None:
    commands.print_table(["class", "n"], [["[/red] \x1b[2J\ncat", "1"], ["caf\udce9", "2"]])
    printed = capsys.readouterr().out
    assert "[/red] \\x1b[2J\\ncat" in printed
    assert "\x1b" not in printed
    assert "caf\\udce9" in printed
