"""What somebody does who is here for the first time, and what the command line says to it."""

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import photos, stop
from tests.pairs import table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/big, photos/small and what people have beside."""
    root = tmp_path_factory.mktemp("desk")
    (root / "photos").mkdir()
    photos(root / "photos", "size", 30, seed=5)
    loose = root / "camera"
    loose.mkdir()
    for number, path in enumerate(sorted((root / "photos").rglob("*.png"))[:6]):
        shutil.copy(path, loose / f"IMG_{number}.png")
    (root / "one").mkdir()
    shutil.copytree(loose, root / "one" / "cats")
    (root / "phone" / "cats").mkdir(parents=True)
    (root / "phone" / "dogs").mkdir()
    for number in range(3):
        (root / "phone" / "cats" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "labels.xlsx").write_bytes(b"PK\x03\x04")
    (root / "labels.csv").write_text("file_name,label\nC:/Users/me/IMG_0.jpg,cat\n")
    (root / "run.yaml").write_text("data: photos\nmetod: ridge\n")
    (root / "photos.rar").write_bytes(b"Rar!")
    return root


FIRST_LINE = {
    "a misspelt folder": (
        ["fit", "--data", "fotos", "--out", "a"],
        "could not load the data 'fotos': it is no folder here (did you mean 'photos'?), and the ",
    ),
    "photos beside each other, without folders of classes": (
        ["fit", "--data", "camera", "--out", "a"],
        "found no images in a class folder: wanted one folder of images per class in 'camera', got "
        "6 images beside each other in 'camera'.",
    ),
    "one class": (
        ["fit", "--data", "one", "--out", "a"],
        "wanted at least two classes to tell apart, got ['cats'].",
    ),
    "the photos of a phone": (
        ["look", "phone"],
        "add images of a kind that PIL reads, not 3 .heic, as phones write them: save them as JPE",
    ),
    "one photo as data": (
        ["look", "camera/IMG_0.png"],
        "or a zip or tar, got the file 'camera/IMG_0.png'.",
    ),
    "a spreadsheet": (
        ["look", "labels.xlsx"],
        "got the spreadsheet 'labels.xlsx'; save it as CSV (UTF-8), with a column file_name",
    ),
    "a table of paths of another machine": (
        ["look", "labels.csv"],
        "none of the 1 image that labels.csv names is there: the first is 'C:/Users/me/IMG_0.jpg'",
    ),
    "another kind of archive": (
        ["look", "photos.rar"],
        "wanted a folder of class folders, a table (CSV, TSV, JSON lines, parquet) or a zip or tar",
    ),
    "predict before fit": (
        ["predict", "my-adapter", "camera"],
        "'my-adapter'",
    ),
    "adapter and photos the wrong way round": (
        ["predict", "camera/IMG_0.png", "my-adapter"],
        "got the file 'camera/IMG_0.png'",
    ),
    "groups of a folder": (
        ["fit", "--data", "photos", "--out", "a", "--group-column", "person"],
        "has no column 'person', only image, label; name another, or list the images in a table",
    ),
    "a card that is not there": (
        ["fit", "--data", "photos", "--out", "a", "--device", "cuda:99"],
        "there is no device 'cuda:99' here (",
    ),
    "a device by another name": (
        ["predict", "ADAPTER", "camera", "--device", "gpu"],
        "there is no device 'gpu' here (it is none that torch knows); leave it out for the CPU, ",
    ),
    "numbers by another name": (
        ["fit", "--data", "photos", "--out", "a", "--dtype", "half"],
        "wanted a dtype of float32, bfloat16, float16, got 'half'.",
    ),
    "test images that are nowhere": (
        ["fit", "--data", "photos", "--out", "a", "--test", "fotos"],
        "wanted a share of the images as test, or data: could not load the data 'fotos': it is no",
    ),
    "a misspelt option in a file": (
        ["fit", "--config", "run.yaml", "--out", "a"],
        "'metod' is not an option that 'run.yaml' may have; did you mean 'method'?",
    ),
    "a share above all": (
        ["compare", "--data", "photos", "--json", "--test", "1.5"],
        "the option test: wanted a number from 0 to 1, got 1.5.",
    ),
    "no such registry": (
        ["bench", "nothing.toml", "--dry-run"],
        "wanted the file 'nothing.toml', which is missing.",
    ),
    "export without its extra": (
        ["export", "ADAPTER", "--out", "a"],
        "not installed: pip install 'residual-peft[onnx]'",
    ),
    "explore without its extra": (
        ["explore", "ADAPTER"],
        "needs the package gradio, which is not installed: pip install 'residual-peft[explorer]'.",
    ),
    "merge of what has no place in the weights": (
        ["merge", "ADAPTER", "--out", "a"],
        "an adapter in readout mode cannot be merged",
    ),
    "sets of classes without a class head": (
        ["predict", "ADAPTER", "camera", "--coverage", "0.9"],
        "this classifier has none: fit one (--method ridge), calibrate it with held-out images, or "
        "leave the coverage out.",
    ),
    "sets of classes by what is not there": (
        ["predict", "ADAPTER", "camera", "--coverage", "0.9", "--sets", "held-out"],
        "this one knows of no held-out images: calibrate(images, labels), or fit with --sets "
        "held-out.",
    ),
    "no prompt in a template": (
        ["fit", "--data", "photos", "--out", "a", "--template", "a photo"],
        "the prompt template 'a photo' has no '{}' where the class name goes.",
    ),
}  # fmt: skip


@table("mistake", FIRST_LINE)
def test_a_mistake_is_answered_by_what_to_do(
    mistake, made, saved_adapter, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(made)
    for extra in ("onnxscript", "onnxruntime", "gradio"):
        monkeypatch.setitem(sys.modules, extra, None)  # as where it is not installed
    given, message = FIRST_LINE[mistake]
    given = [str(saved_adapter) if word == "ADAPTER" else word for word in given]
    assert stop(monkeypatch, *given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("residual-peft: ")
    assert message in last
    assert not (made / "a").exists()


@table(
    ("given", "message"),
    [
        (["train"], "No such command 'train'"),
        (["fit", "--data", "photos"], "Missing option '--out'"),
        (["predict", "my-adapter"], "Missing argument 'IMAGES'"),
        (["look", "photos", "--outt", "x"], "--outt"),
        (["fit", "--data", "photos", "--out", "a", "--few", "0"], "Invalid value for '--few'"),
        (
            ["fit", "--data", "photos", "--out", "a", "--batch-size", "0"],
            "Invalid value for '--batch-",
        ),
    ],
)
def test_words_that_no_command_knows(given, message, made, monkeypatch, capsys) -> None:
    monkeypatch.chdir(made)
    assert stop(monkeypatch, *given) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_within_the_data_is_no_class(made: Path, tmp_path, monkeypatch, capsys) -> None:
    """`--out` in the folder of the photos: the next fit must not learn from that one's report."""
    folder = tmp_path / "photos"
    shutil.copytree(made / "photos", folder)
    (folder / "adapter" / "run" / "examples").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    Image.new("RGB", (9, 9)).save(folder / "adapter" / "run" / "examples" / "1.png")
    assert stop(monkeypatch, "look", str(folder)) == 0
    assert capsys.readouterr().out.startswith("30 images of 2 classes (train 30)")
