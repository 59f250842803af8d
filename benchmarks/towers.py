"""How exact each family of towers is: its decomposition, readout mode, stream mode and merging.

    python benchmarks/towers.py        # writes towers.json beside itself and docs/towers.md

Tiny models of each class with random weights, biases, LayerNorms and layer scales, those of the
tests. Errors are relative, the largest over five images:

- units: their sum against the model's own readout;
- readout: random gains, bases from data, float32, against plain loops over the units in float64;
- stream: the same with mode="stream", against every head's output changed by itself in float64;
- merged: that adapter merged into the weights, against itself unmerged.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' tiny models

from residual_peft import ResiDualConfig, decompose, fit_bases, gains_by_module
from residual_peft.decomposition import run_tower
from residual_peft.files import write_json
from tests.models import EVERY, pixels
from tests.tuner.stream_twin import slow
from tests.tuner.twin import expected

HERE = Path(__file__).parent
HEADERS = ("tower", "units, float64", "units, float32", "readout mode", "stream mode", "merged")
HEAD = """# Towers

Measured by `python benchmarks/towers.py` on tiny models with random weights
(transformers {release}). Relative errors of the readout: the sum of all units against the model's
own; adapters in float32 with random gains against their definition, in plain loops in float64; the
merged adapter against itself unmerged.

"""


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest relative error of a batch."""
    gap = (found.double() - wanted.double()).norm(dim=1) / wanted.double().norm(dim=1)
    return float(gap.max())


def units(name: str, dtype: torch.dtype) -> float:
    """Σ contributions + bias against the readout."""
    found = decompose(EVERY[name]().to(dtype), pixels().to(dtype))
    return error(found.contributions.sum(1) + found.bias, found.readout)


def adapted(name: str, mode: str) -> PeftModel:
    """An adapter fitted on other images, with random gains."""
    model = get_peft_model(EVERY[name](), ResiDualConfig(mode=mode)).eval()
    fit_bases(model, [pixels(60, seed=5)])
    generator = torch.Generator().manual_seed(7)
    for gains in gains_by_module(model).values():
        gains.data = 1 + 0.5 * torch.randn(gains.shape, generator=generator)
    return model


def _run(model: Any, images: Tensor) -> Tensor:
    """The readout of a model whose Linears are of the twin's kind, which `run_tower` refuses."""
    features = getattr(model, "get_image_features", None)
    if features is not None:
        return features(pixel_values=images).pooler_output
    tower = getattr(model, "vit", getattr(model, "deit", model))
    output = tower(pixel_values=images)
    if "image_embeds" in output:
        return output.image_embeds
    return (
        output.pooler_output if hasattr(tower, "pre_layrnorm") else output.last_hidden_state[:, 0]
    )


@torch.no_grad()
def measure(name: str) -> dict[str, float]:
    """All errors of one tower."""
    images, readout, stream = pixels(), adapted(name, "readout"), adapted(name, "stream")
    unmerged, definition = run_tower(stream, images), slow(stream, EVERY[name]())
    return {
        "units_float64": units(name, torch.float64),
        "units_float32": units(name, torch.float32),
        "readout": error(run_tower(readout, images), expected(EVERY[name](), readout, images)),
        "stream": error(unmerged, _run(definition, images.double())),
        "merged": error(run_tower(stream.merge_and_unload(), images), unmerged),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """The errors as a Markdown table."""
    lines = [HEADERS, ["---"] * len(HEADERS)]
    lines += [[f"`{name}`", *(f"{e:.0e}" for e in row.values())] for name, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Measure all towers and write both files."""
    rows = {name: measure(name) for name in EVERY}
    write_json(HERE / "towers.json", {"transformers": transformers.__version__, "rows": rows})
    text = HEAD.format(release=transformers.__version__) + table(rows)
    (HERE.parent / "docs" / "towers.md").write_text(text)


if __name__ == "__main__":
    main()
