"""A small demo, and its adapter in a second process."""

import json
import subprocess
import sys

import pytest

from residual_peft.app.demonstration import run_demo
from residual_peft.reporting.run_record import RunRecord

SECOND = """
import json, sys, torch
import residual_peft
from residual_peft.data.processors import load_image_processor
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import CLIPModel
from residual_peft.demo.tasks import handwriting

out = sys.argv[1]
clip = CLIPModel.from_pretrained(PeftConfig.from_pretrained(out).base_model_name_or_path)
adapted = PeftModel.from_pretrained(clip, out).eval()
processor = load_image_processor(out)
classes = load_file(f"{out}/residual_classifier.safetensors")["class_embeddings"]
test = handwriting()["test"]
images = [image.convert("RGB") for image in test["image"]]
with torch.no_grad():
    readout = adapted(**processor(images, return_tensors="pt")).image_embeds
found = (readout @ classes.T).argmax(1)
print((found == torch.tensor(test["label"])).double().mean().item())
"""

CLASSIFIER = """
import sys
from residual_peft import ZeroShotClassifier, evaluate
from residual_peft.demo.tasks import handwriting
classifier = ZeroShotClassifier.from_pretrained(sys.argv[1])
print(evaluate(classifier, handwriting()["test"]).metrics["accuracy"])
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(
        out,
        seeds=(0,),
        methods=("zero_shot", "default"),
        world_images_per_task=100,
        basis_images=400,
    )


def test_the_default_beats_zero_shot_by_far(results):
    out, found = results
    assert json.loads((out / "results.json").read_text()) == found
    zero_shot, default = (row["test_accuracy"] for row in found["rows"])
    assert default > zero_shot + 0.2
    assert set(found["world"]) >= {"color", "background", "position", "size", "shape", "digit"}
    assert found["world"]["color"] > 0.95
    assert (out / "gains.png").read_bytes().startswith(b"\x89PNG")
    assert "residual_peft" in (out / "README.md").read_text()


def test_the_demo_leaves_a_report_on_its_adapter(results):
    out, found = results
    record = RunRecord.load(out)
    right = [(x.argmax(1) == record.labels).double().mean() for x in (record.before, record.after)]
    rows = [row["test_accuracy"] for row in found["rows"]]
    assert [float(x) for x in right] == pytest.approx(rows)
    assert record.facts.adapter == out.name
    assert len(record.examples) >= 12
    page = (out / "report.html").read_text()
    assert "Handwritten digits, by a CLIP that was never shown any" in page
    assert len(page) < 2_000_000
    shown = (*record.examples, *record.mistakes, *record.suspicious)
    assert page.count("<img ") == len(shown)


@pytest.mark.parametrize("program", [SECOND, CLASSIFIER], ids=["PEFT", "classifier"])
def test_a_second_process_reproduces_the_accuracy(results, program):
    out, found = results
    run = subprocess.run(
        [sys.executable, "-c", program, str(out)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout.split()[-1]) == found["rows"][1]["test_accuracy"]
