"""An adapter is exported by name, and answers where there is no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from residual_peft import ZeroShotClassifier
from residual_peft.app.exporting import AT_MOST, export_adapter
from residual_peft.classifiers.exporting import ExportedOnnx
from residual_peft.errors import ResiDualError
from tests.commands import stop

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_without_torch.py"
WITHOUT_TORCH = """
import runpy, sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "residual_peft", "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert "torch" not in sys.modules
"""


def odd_pictures(folder: Path) -> list[str]:
    """Turned by EXIF, transparent, with a palette, grey."""
    generator = np.random.default_rng(3)
    noise = Image.fromarray(generator.integers(0, 256, (50, 90, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.convert("RGB").save(folder / "turned.jpg", exif=exif, quality=95)
    noise.save(folder / "clear.png")
    noise.convert("RGB").convert("P").save(folder / "palette.png")
    noise.convert("L").save(folder / "grey.png")
    return [str(folder / name) for name in ("turned.jpg", "clear.png", "palette.png", "grey.png")]


@pytest.mark.slow
def test_the_example_says_without_torch_what_predict_says(
    saved_adapter, shapes, tmp_path, monkeypatch, capsys
) -> None:
    path, files = tmp_path / "shapes.onnx", [*shapes, *odd_pictures(tmp_path)]
    arguments = (str(saved_adapter), "--out", str(path), "--images", str(tmp_path / "shapes"))
    assert stop(monkeypatch, "export", *arguments, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == path.stat().st_size
    assert (said["images"], said["classes"], said["size"]) == (10, 3, [40, 40])
    assert said["probability_difference"] < 1e-4
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(EXAMPLE), str(path), *files]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    classifier = ZeroShotClassifier.from_pretrained(saved_adapter)
    lines = done.stdout.splitlines()
    for line, found in zip(lines, classifier.predict(files), strict=True):
        file, _, answer = line.partition(": ")
        shown = [part.rsplit(" ", 1) for part in answer.split(", ")]
        wanted = found.top(3)
        assert file == found.file
        assert [name for name, _ in shown] == [name for name, _ in wanted]
        scores = [float(score) for _, score in shown]
        np.testing.assert_allclose(scores, [score for _, score in wanted], atol=6e-4)


def test_twenty_lines_are_twenty() -> None:
    code = EXAMPLE.read_text().split('"""')[2].splitlines()
    assert len([line for line in code if line and "import" not in line]) <= 22


def test_what_is_exported_is_loaded_and_told(saved_adapter, shapes, tmp_path, monkeypatch) -> None:
    seen = []

    def written(classifier, out, *, images):
        seen.append((classifier, images))
        return ExportedOnnx(
            out, 6_800_000, (40, 40), 3, False, len(images), 2e-7, 1e-6, "bfloat16", 3.0
        )

    monkeypatch.setattr("residual_peft.app.exporting.export_onnx", written)
    found = export_adapter(saved_adapter, tmp_path / "a.onnx", images=Path(shapes[0]).parent)
    ((classifier, images),) = seen
    assert classifier.class_names == ("circle", "square", "heart")
    assert [image.mode for image in images] == ["RGB"] * 10
    assert len(images) <= AT_MOST
    assert found.lines() == [
        f"{tmp_path / 'a.onnx'}: 6.8 MB; pixels (N, 3, 40, 40) in, probabilities of 3 classes out",
        "onnxruntime and torch differ by 2.0e-07 in a probability at most, on 10 images",
        "the adapter's model is in bfloat16; the file computes in float32",
    ]
    with pytest.raises(ResiDualError, match="wanted the format onnx, got 'tflite'"):
        export_adapter(saved_adapter, tmp_path / "a", format="tflite")
    with pytest.raises(ResiDualError, match=r"no such file|no file is called so"):
        export_adapter(saved_adapter, tmp_path / "a", images=tmp_path / "none.png")


def test_the_folder_one_is_in_gives_the_file_its_name(tmp_path, monkeypatch) -> None:
    """`export .` writes no `.onnx`, which nobody would see."""
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "birds")
    named = []

    def written(adapter, out, **options):
        named.append(str(out))
        raise ResiDualError("enough")

    monkeypatch.setattr("residual_peft.app.exporting.export_adapter", written)
    for adapter in (".", "../birds", "./", "someone/birds"):
        assert stop(monkeypatch, "export", adapter) == 2
    assert named == ["birds.onnx"] * 4
