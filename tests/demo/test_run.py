"""A small demo, and its adapter in a second process."""

import json
import subprocess
import sys

import pytest

from residual_peft.demo.run import run_demo

SECOND = """
import sys, torch
import residual_peft
from peft import PeftModel
from transformers import CLIPModel
from residual_peft.demo.tasks import handwriting
from residual_peft import ZeroShotClassifier, evaluate
from residual_peft.hub import DEMO_MODEL, local_directory
clip = CLIPModel.from_pretrained(local_directory(DEMO_MODEL))
adapted = PeftModel.from_pretrained(clip, sys.argv[1]).eval()
saved = ZeroShotClassifier.from_pretrained(sys.argv[1], model=None)
saved.model = adapted
print(evaluate(saved, handwriting()["test"]).metrics["accuracy"])
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


def test_a_second_process_reproduces_the_accuracy(results):
    out, found = results
    run = subprocess.run(
        [sys.executable, "-c", SECOND, str(out)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout.split()[-1]) == found["rows"][1]["test_accuracy"]
