"""A base model's folder from anybody: nothing of it is run, and its sizes are looked at first."""

import ast
import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel, ViTConfig, ViTModel

import residual_peft
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data.processors import load_image_processor
from residual_peft.errors import ResiDualError
from residual_peft.hub.directories import BUNDLED_DIRECTORY
from residual_peft.hub.model_files import (
    check_model,
    load_model,
    load_processor,
    load_tokenizer,
)
from tests.pairs import table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(BUNDLED_DIRECTORY, tmp_path / "clip")
    return tmp_path / "clip"


def edit(path: Path, field: str, value: object) -> None:
    whole: Any = json.loads(path.read_text())
    *parents, last = field.split(".")
    inside = whole
    for name in parents:
        inside = inside.setdefault(name, {})
    inside[last] = value
    path.write_text(json.dumps(whole))


@table(
    ("field", "value", "message"),
    [
        ("vision_config.num_hidden_layers", 10**9, "num_hidden_layers: wanted at most 1"),
        ("text_config.num_hidden_layers", 10_000, "num_hidden_layers: wanted at most 1"),
        ("vision_config.hidden_size", 10**9, "vision_config.hidden_size: wanted at most 1,048,576"),
        ("vision_config.hidden_size", 800_000, "asks for a model of .* numbers, and the weights"),
        ("text_config.intermediate_size", 10**6, "asks for a model of .* numbers, and the weights"),
        ("vision_config.image_size", 10**6, "asks for a model of .* numbers, and the weights"),
        ("text_config.vocab_size", 10**10, "vocab_size: wanted at most"),
        ("num_labels", 10**9, "num_labels: wanted at most"),  # a dict of names in transformers
        ("vision_config.depths", [2, 10**9], "vision_config.depths: wanted at most"),
        ("projection_dim", "9" * 5000, "got none that loads"),
        ("vision_config", None, "got none that loads"),
        ("architectures", 3, "field architectures: wanted a list, each text or null, got 3"),
    ],
)
def test_sizes_are_believed_once_the_weights_were_looked_at(
    folder: Path, field: str, value: object, message: str
) -> None:
    edit(folder / "config.json", field, value)
    started = time.monotonic()
    if field == "vision_config":
        (folder / "config.json").write_text("[" * 10**5)
        message = "nested deeper than 64"
    with pytest.raises(ResiDualError, match=message) as refused:
        load_backbone(folder)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - started < 30


def test_a_model_in_pytorchs_own_format_is_bounded_by_its_file(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    model = ViTModel(ViTConfig(num_hidden_layers=1, num_attention_heads=2, **sizes))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    check_model(tmp_path, ViTModel)
    edit(tmp_path / "config.json", "num_hidden_layers", 10**9)
    with pytest.raises(ResiDualError, match="num_hidden_layers: wanted at most"):
        check_model(tmp_path, ViTModel)


@table(
    ("field", "value", "message"),
    [
        ("crop_size.height", 10**5, r"crop_size\.height: wanted a number from 1 to 4096, got 100"),
        ("size.shortest_edge", 10**5, r"size\.shortest_edge: wanted a number from 1 to 4096"),
        ("size.shortest_edge", 0, r"size\.shortest_edge: wanted a number from 1 to 4096, got 0"),
        ("size", "large", "field size: wanted a whole number or a list, each a whole number or fi"),
        ("max_num_patches", 10**7, "max_num_patches: wanted a number from 1 to 4096"),
        ("image_mean", [0.5, "x", 0.5], r"image_mean\[1\]: wanted a finite number, got 'x'"),
        ("image_std", [0.5, 0.0, 0.5], "wanted image_std other than 0"),
        ("resample", 77, "resample: wanted a number from 0 to 5, got 77"),
        ("do_resize", "yes", "do_resize: wanted true or false or null, got 'yes'"),
        ("image_processor_type", "NoSuch", "wanted an image processor in .* got none that loads"),
    ],
)
def test_a_processor_makes_no_larger_images_than_towers_take(
    folder: Path, field: str, value: object, message: str
) -> None:
    edit(folder / "preprocessor_config.json", field, value)
    with pytest.raises(ResiDualError, match=message):
        load_image_processor(folder)
    whole = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": whole}))
    with pytest.raises(ResiDualError):
        load_image_processor(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
@table(
    "name",
    ["config.json", "tokenizer.json", "merges.txt", "model.safetensors", "chat_template.jinja"],
)
def test_a_pipe_holds_nobody_up(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ResiDualError, match=f"{name}' as a plain file, got a pipe"):
        load_backbone(folder)
    with pytest.raises(ResiDualError, match=f"{name}' as a plain file, got a pipe"):
        load_tokenizer(folder)
    with pytest.raises(ResiDualError, match=f"{name}' as a plain file, got a pipe"):
        load_processor(folder)


def test_a_vast_vocabulary_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(10**12)
    with pytest.raises(ResiDualError, match=r"tokenizer\.json' of at most 134,217,728 bytes, got"):
        load_tokenizer(folder)


def test_nothing_of_a_folder_is_run_and_nobody_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"open({str(folder / 'ran')!r}, 'w')\nclass Theirs: pass\n"
    (folder / "theirs.py").write_text(code)
    for name, auto in (
        ("config.json", {"AutoModel": "theirs.Theirs", "AutoConfig": "theirs.Theirs"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}),
        ("preprocessor_config.json", {"AutoImageProcessor": "theirs.Theirs"}),
    ):
        edit(folder / name, "auto_map", auto)
    edit(folder / "tokenizer_config.json", "tokenizer_class", "Theirs")
    edit(folder / "preprocessor_config.json", "image_processor_type", "Theirs")

    asked: list[object] = []

    def ask(*args: object) -> str:
        asked.append(args)
        return "n"

    monkeypatch.setattr("builtins.input", ask)
    load_model(CLIPModel, folder, torch.float32)
    for load in (load_tokenizer, load_processor):
        with contextlib.suppress(ResiDualError):  # whether they do without it is theirs to say
            load(folder)
    assert not asked
    assert not (folder / "ran").exists()


def test_an_adapter_in_a_models_folder_is_not_loaded_along(folder: Path) -> None:
    evil = {"peft_type": "LORA", "megatron_core": "evil", "megatron_config": {"a": 1}}
    (folder / "adapter_config.json").write_text(json.dumps(evil))
    with pytest.raises(ResiDualError, match="got one with an adapter"):
        load_backbone(folder)


def calls(name: str) -> list[tuple[Path, ast.Call]]:
    found = []
    for path in Path(residual_peft.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name):
                found.append((path, node))
    return found


OURS = ("ZeroShotClassifier", "SpectralBasis", "ResiDualConfig", "TaskSet", "PeftModel", "super()")


def test_every_door_to_transformers_trusts_no_code_and_no_pickle() -> None:
    doors = [
        call for _, call in calls(".from_pretrained") if not ast.unparse(call.func).startswith(OURS)
    ]
    assert len(doors) >= 4
    for call in doors:
        assert ("trust_remote_code", "False") in [
            (word.arg, ast.unparse(word.value)) for word in call.keywords
        ] or "config_class" in ast.unparse(call.func), ast.unparse(call)
    for _, call in calls("torch.load"):
        assert ("weights_only", "True") in [(w.arg, ast.unparse(w.value)) for w in call.keywords]
