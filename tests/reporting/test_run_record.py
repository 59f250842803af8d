"""What a fit leaves for its report: back from disk as it was, refused when it is not whole."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from residual_peft.analysis.describing import Words
from residual_peft.data.pictures import thumbnail
from residual_peft.errors import ResiDualError
from residual_peft.reporting.run_record import (
    Example,
    GainRecord,
    HeadShares,
    NamedImage,
    RunRecord,
)
from residual_peft.towers.units import Unit
from tests.pairs import table
from tests.records import TRUST, head_record, record


def picture(size: int = 20) -> bytes:
    pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
    return thumbnail(Image.fromarray(pixels))


def same(one: RunRecord, other: RunRecord) -> bool:
    tensors = [
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("labels", "before", "after")
    ]
    tensors += [
        torch.equal(tensor, other.gains.tensors()[name])
        for name, tensor in one.gains.tensors().items()
    ]
    names = ("class_names", "facts", "words", "examples")
    units = [
        getattr(one.gains, name) == getattr(other.gains, name)
        for name in ("units", "counts", "rescaling_share", "settings_share")
    ]
    return all([*tensors, *units, *(getattr(one, n) == getattr(other, n) for n in names)])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    whole = replace(
        record(),
        examples=(Example(3, picture()), Example(1, picture(100))),
        words=(Words(Unit("head", 1, 0), 2, (("a stripe", 0.5), ("כלב", -0.25)), 0.4),),
    )
    whole.save(tmp_path / "out" / "run")
    return tmp_path / "out"


def test_a_fit_that_left_all_as_it_was(tmp_path: Path) -> None:
    """Then one tensor is both, which safetensors takes for a mistake."""
    made = record()
    made = replace(made, after=made.before)
    made.save(tmp_path / "run")
    assert same(RunRecord.load(tmp_path), made)


def test_one_of_before_still_loads() -> None:
    """Written by this package at commit c52a2e8: the same record, and a picture."""
    found = RunRecord.load(Path(__file__).parents[1] / "saved_at_c52a2e8" / "record")
    assert [example.row for example in found.examples] == [3]
    assert same(replace(found, examples=()), record())


def test_it_comes_back_as_it_was(saved: Path) -> None:
    found = RunRecord.load(saved / "run")
    assert found.words[0].texts[1] == ("כלב", -0.25)
    assert same(RunRecord.load(saved), found)  # by the adapter's directory as well
    assert sorted(path.name for path in (saved / "run" / "examples").iterdir()) == [
        "1.jpg",
        "3.png",
    ]
    found.save(saved / "again")
    assert same(RunRecord.load(saved / "again"), found)
    plain = replace(record(), gains=None)
    plain.save(saved / "run")
    assert RunRecord.load(saved).gains is None


def with_head() -> RunRecord:
    image = NamedImage("cats/כלב 1.png", 2, 0, 0.75, picture())
    return replace(
        record(),
        gains=None,
        head=head_record(3),
        trust=TRUST,
        mistakes=(image, replace(image, file="row 3 of the test split", image=picture(100))),
        suspicious=(replace(image, score=0.5),),
        examples=(Example(3, picture()),),
    )


def test_what_a_class_head_says_comes_back_too(saved: Path) -> None:
    made = with_head()
    made.save(saved / "run")
    found = RunRecord.load(saved)
    for name in ("trust", "mistakes", "suspicious", "examples", "gains"):
        assert getattr(found, name) == getattr(made, name)
    for name in ("features", "units", "counts", "text_share", "whole", "reasons"):
        assert getattr(found.head, name) == getattr(made.head, name)
    assert torch.equal(found.head.share, made.head.share)
    assert torch.equal(found.head.toward_label, made.head.toward_label)
    names = {path.name for path in (saved / "run" / "examples").iterdir()}
    assert names == {"3.png", "mistake-0.png", "mistake-1.jpg", "suspicious-0.png"}
    nothing = torch.zeros(0)
    plain = replace(record(), head=HeadShares("embedding", (), (), nothing, nothing))
    plain.save(saved / "run")
    found = RunRecord.load(saved)
    assert (found.head.features, found.head.units, found.trust) == ("embedding", (), None)
    assert list((saved / "run" / "examples").glob("[ms]*")) == []


def test_what_does_not_belong_to_the_classes_is_refused() -> None:
    image = NamedImage("a.png", 3, 0, 0.5, picture())
    with pytest.raises(ResiDualError, match="wanted classes from 0 to 2 beside images"):
        replace(record(), mistakes=(image,))
    with pytest.raises(ResiDualError, match="wanted classes from 0 to 2 beside images"):
        replace(record(), head=head_record(4))
    with pytest.raises(ResiDualError, match="whole or not at all, got parts of it"):
        replace(TRUST, more_images=None)
    head = head_record(3)
    with pytest.raises(ResiDualError, match="12 shares of the 4 units that a class head reads"):
        replace(head, share=head.share[:-1])


def test_pictures_of_an_earlier_run_go_and_other_files_stay(saved: Path) -> None:
    (saved / "run" / "examples" / "mine.txt").write_text("mine")
    replace(record(), examples=(Example(5, picture()),)).save(saved / "run")
    names = {path.name for path in (saved / "run" / "examples").iterdir()}
    assert names == {"5.png", "mine.txt"}


def edit(**changes: object) -> Callable[[Path], None]:
    def mistake(run: Path) -> None:
        described = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(described | changes))

    return mistake


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def mistake(run: Path) -> None:
        (run / name).write_bytes((run / name).read_bytes()[:keep])

    return mistake


def of_another_run(run: Path) -> None:
    tensors = load_file(run / "run.safetensors")
    save_file(tensors, run / "run.safetensors", {"stamp": "another"})


def one_gain_less(run: Path) -> None:
    stamp = json.loads((run / "run.json").read_text())["stamp"]
    tensors = load_file(run / "run.safetensors")
    tensors["gains"] = tensors["gains"][:-1].clone()
    save_file(tensors, run / "run.safetensors", {"stamp": stamp})


def link_to_a_secret(run: Path) -> None:
    (run.parent / "secret").write_bytes(picture())
    (run / "examples" / "3.png").unlink()
    (run / "examples" / "3.png").symlink_to(run.parent / "secret")


def not_a_number(run: Path) -> None:
    stamp = json.loads((run / "run.json").read_text())["stamp"]
    tensors = load_file(run / "run.safetensors")
    tensors["before"][0, 0] = float("nan")
    save_file(tensors, run / "run.safetensors", {"stamp": stamp})


def a_bomb(run: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(run / "examples" / "3.png")  # 110 kB for 900 MB in RGB


def a_pipe(run: Path) -> None:
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")


def a_folder_elsewhere(run: Path) -> None:
    (run / "examples").rename(run.parent / "private")
    (run / "examples").symlink_to(run.parent / "private")


def a_record_elsewhere(run: Path) -> None:
    run.rename(run.parent.parent / "private")
    run.symlink_to(run.parent.parent / "private")


WORDS = {"unit": "embed", "component": None, "texts": [], "explained": None}


@table(
    ("mistake", "message"),
    [
        (
            lambda run: (run / "run.json").unlink(),
            r"record of a fit \(run/run\.json\), got '.*out'",
        ),
        (lambda run: (run / "run.safetensors").unlink(), "run.safetensors', which is missing"),
        (lambda run: (run / "examples" / "1.jpg").unlink(), "1.jpg' of an image, which is mi"),
        (cut("run.json", 100), "is not JSON"),
        (cut("run.safetensors", 100), "is not a whole safetensors file"),
        (cut("examples/1.jpg", 300), "1.jpg' as a whole JPEG or PNG of at most 1024 pixels"),
        (of_another_run, "run.safetensors is of another run"),
        (
            one_gain_less,
            r"wanted gains in '.*' as floats of shape \(12\), got .*32 of shape \(11,\)",
        ),
        (link_to_a_secret, "3.png' of an image, which is missing"),
        (edit(format_version=2), "written by a newer residual-peft .format 2, this one reads 1"),
        (
            edit(class_names=["a", "b"]),
            r"before in .* of shape \(8, 2\), got torch.float32 of shape \(8, 3\)",
        ),
        (
            edit(facts={"templates": []}),
            "no whole record of a fit: wanted all facts of a fit, got no model_name",
        ),
        (edit(examples=[{"row": 99, "file": "3.png"}]), "wanted examples among the 8 test images"),
        (
            edit(examples=[{"row": 3, "file": "../../../../etc/passwd"}]),
            "'.*/run/examples/passwd' of an image, which is missing",
        ),
        (
            lambda run: (run / "run.json").write_text("[]"),
            "run.json' with fields by name, got list of 0",
        ),
        (edit(words=[{"unit": "embed"}]), r"words\[0\]\.component: wanted a whole number or null"),
        (edit(words=[{**WORDS, "texts": [["a", 1e999]]}]), "holds Infinity, which is no number"),
        (edit(words=[{**WORDS, "texts": [["a"]]}]), r"texts\[0\]: wanted a list of 2: text, a fin"),
        (edit(words=[{**WORDS, "unit": f"layer{'9' * 5000}.mlp"}]), "is not the name of a unit"),
        (
            edit(examples=[{"row": -1, "file": "3.png"}]),
            r"examples\[0\]\.row: wanted a number f",
        ),
        (not_a_number, "before in '.*' holds NaN or infinite values"),
        (a_bomb, "3.png' as a whole JPEG or PNG of at most 1024 pixels each way, got something"),
        (a_pipe, "run.json' as a plain file, got a pipe"),
        (a_folder_elsewhere, "3.png' of an image, which is missing or a link"),
        (a_record_elsewhere, r"run\.json' in the directory itself, got a link that leads out"),
    ],
)
def test_what_is_not_whole_is_refused(
    saved: Path, mistake: Callable[[Path], None], message: str
) -> None:
    mistake(saved / "run")
    with pytest.raises(ResiDualError, match=message) as refused:
        RunRecord.load(saved)
    assert "\n" not in str(refused.value)


def test_a_record_of_nothing_is_refused() -> None:
    with pytest.raises(ResiDualError, match="wanted labels from 0 to 2"):
        replace(record(), labels=torch.full((8,), 3))
    with pytest.raises(ResiDualError, match="numbers among the facts of a fit, got 'soon'"):
        replace(record().facts, fitting_seconds="soon")
    one = torch.ones(2)
    with pytest.raises(ResiDualError, match="got 1 counts and another size of none"):
        GainRecord((Unit("embed"), Unit("output")), (2,), one, one, one)
    with pytest.raises(ResiDualError, match="wanted all facts of a fit, got no method"):
        replace(record(), facts=replace(record().facts, method=None))


def test_a_thumbnail_is_small_and_says_nothing_of_where_it_was_taken() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 400, 3), np.uint8)
    large, stream, info = Image.fromarray(pixels), io.BytesIO(), PngInfo()
    info.add_text("Comment", "at home")
    exif = Image.Exif()
    exif[0x010E] = "at home"  # the image's description
    large.save(stream, "PNG", pnginfo=info, exif=exif, icc_profile=b"at home")
    with Image.open(stream) as original:
        original.load()
        assert original.info["Comment"] == "at home"
        made = thumbnail(original)
    assert b"at home" not in made
    with Image.open(io.BytesIO(made)) as small:
        assert (small.format, small.size) == ("JPEG", (160, 36))
        assert not small.getexif()
    tiny = Image.fromarray(pixels[:8, :8])
    with Image.open(io.BytesIO(thumbnail(tiny))) as kept:
        assert kept.format == "PNG"
        np.testing.assert_array_equal(np.asarray(kept), pixels[:8, :8])
