"""How exact each family of towers is: its decomposition, both modes, merging, and the text side.

    python benchmarks/towers.py        # writes towers.json beside itself and docs/towers.md's table

Tiny models of each class with random weights, biases, LayerNorms and layer scales, those of the
tests. Errors are relative, the largest over five samples:

- units: their sum against the model's own readout;
- readout: random gains, bases from data, float32, against plain loops over the units in float64;
- stream: the same with mode="stream", against every head's output changed by itself in float64;
- merged: that adapter merged into the weights, against itself unmerged;
- text: the adapted readout of a dual encoder's text tower, in readout mode.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' tiny models

from residual_peft import ResiDualConfig, decompose, find_tower, fit_bases, gains_by_module
from residual_peft.hub.files import write_json
from residual_peft.towers.registry import ARCHITECTURES, UNSUITED
from residual_peft.towers.running import run_tower
from residual_peft.tuner import adapted_tower
from tests.models import EVERY, pixels
from tests.open_clip_models import open_clip_model
from tests.pooled import CASES, TEXT, Pooled, double, own_readout, texts
from tests.slow import tower_of
from tests.towers.test_pooled_towers import expected as expected_pooled
from tests.tuner.stream_twin import slow
from tests.tuner.twin import expected

HERE = Path(__file__).parent
HEADERS = (
    "tower",
    "units, float64",
    "units, float32",
    "readout mode",
    "stream mode",
    "merged",
    "text side",
)
MARK = "<!-- the table is written by benchmarks/towers.py -->\n"


# a fused attention output projection is no module of its own, which stream mode could change
OPEN_CLIP = {
    "open_clip.CLIP": open_clip_model,
    "open_clip.CLIP, layer scale": lambda *args: open_clip_model(layer_scale=0.5),
    "open_clip.CustomTextCLIP": lambda *args: open_clip_model("CustomTextCLIP"),
}


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest relative error of a batch."""
    gap = (found.double() - wanted.double()).norm(dim=1) / wanted.double().norm(dim=1)
    return float(gap.max())


def case_of(name: str) -> Pooled:
    """What the tests know of a tower; those that read one token are built like each other."""
    if name in OPEN_CLIP:
        return Pooled(OPEN_CLIP[name], "first")
    return CASES[name] if name in CASES else Pooled(EVERY[name], "first")


def units(case: Pooled, dtype: torch.dtype) -> float:
    """Σ contributions + bias against the readout."""
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.batch().items()}
    found = decompose(case.build().to(dtype), batch, **dict(case.options))
    return error(found.contributions.sum(1) + found.bias, found.readout)


def adapted(case: Pooled, mode: str) -> PeftModel:
    """An adapter fitted on other samples, with random gains."""
    model = get_peft_model(case.build(), ResiDualConfig(mode=mode, **dict(case.options))).eval()
    fit_bases(model, [case.batch(60, seed=5)])
    generator = torch.Generator().manual_seed(7)
    for gains in gains_by_module(model).values():
        gains.data = 1 + 0.5 * torch.randn(gains.shape, generator=generator)
    return model


def _run(name: str, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The readout of a model whose Linears are of the twin's kind, which `run_tower` refuses."""
    if name in CASES:
        return own_readout(CASES[name], model, batch)
    features = getattr(model, "get_image_features", None)
    if features is not None:
        return features(**batch).pooler_output
    tower = tower_of(model)
    output = tower(**batch)
    if "image_embeds" in output:
        return output.image_embeds
    return (
        output.pooler_output if hasattr(tower, "pre_layrnorm") else output.last_hidden_state[:, 0]
    )


def readout_error(name: str, case: Pooled) -> float:
    """An adapter in readout mode against its definition."""
    model, batch = adapted(case, "readout"), case.batch()
    wanted = (
        expected_pooled(case, model, batch)
        if case.kind != "first" or name in CASES
        else expected(case.build(), model, pixels())
    )
    return error(run_tower(model, batch, anatomy=adapted_tower(model, "default")), wanted)


def text_error(name: str, case: Pooled) -> float | str:
    """The same of the text tower beside an image tower, or why there is none."""
    kind = type(case.build()).__name__
    if kind in UNSUITED["text"]:
        return "post-norm"
    if name in OPEN_CLIP:
        return "not adapted"
    if case.options or kind not in ARCHITECTURES["text"]:
        return "-"
    last = kind.startswith("Siglip")
    text = Pooled(
        case.build,
        "last" if last else "end",
        texts,
        "text_model",
        "text_model.head" if last else "text_projection",
        "final_layer_norm",
        0,
        TEXT,
    )
    return readout_error(name, text)


@torch.no_grad()
def measure(name: str) -> dict[str, float | str]:
    """All errors of one tower."""
    case = case_of(name)
    row: dict[str, float | str] = {
        "units_float64": units(case, torch.float64),
        "units_float32": units(case, torch.float32),
        "readout": readout_error(name, case),
        "stream": "as above",
        "merged": "as above",
        "text": text_error(name, case),
    }
    if name in OPEN_CLIP:
        return row | {"stream": "fused", "merged": "-"}
    if "readout" in dict(case.options):  # stream mode changes all tokens, whatever is read
        return row
    batch, stream = case.batch(), adapted(case, "stream")
    anatomy = find_tower(case.build(), **dict(case.options))
    plain = stream.get_base_model()
    unmerged = _run(name, plain, batch)
    row["stream"] = error(unmerged, _run(name, slow(stream, case.build()), double(batch)))
    merged = stream.merge_and_unload()
    row["merged"] = error(_run(name, merged, batch), unmerged)
    assert find_tower(merged, **dict(case.options)).architecture == anatomy.architecture
    return row


def shown(value: float | str) -> str:
    """One cell."""
    return value if isinstance(value, str) else f"{value:.0e}"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The errors as a Markdown table."""
    lines = [HEADERS, ["---"] * len(HEADERS)]
    lines += [[f"`{name}`", *map(shown, row.values())] for name, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Measure all towers and write both files."""
    rows = {name: measure(name) for name in [*EVERY, *CASES, *OPEN_CLIP]}
    write_json(HERE / "towers.json", {"transformers": transformers.__version__, "rows": rows})
    page = HERE.parent / "docs" / "towers.md"
    text = page.read_text()
    text = re.sub(r"\(transformers [\d.]+\)", f"(transformers {transformers.__version__})", text)
    before, _, rest = text.partition(MARK)
    after = re.sub(r"\A\n?(\|[^\n]*\n)*", "", rest)
    page.write_text(f"{before}{MARK}\n{table(rows)}\n{after.lstrip()}")


if __name__ == "__main__":
    main()
