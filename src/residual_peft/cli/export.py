"""`residual-peft export`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .commands import begin, check_file, example, tell
from .options import Adapter


@example("""residual-peft export my-adapter --out my-adapter.onnx
my-adapter.onnx: 6.8 MB; pixels (N, 3, 40, 40) in, probabilities of 3 classes out
onnxruntime and torch differ by 2.1e-07 in a probability at most, on 8 images""")
def export(
    adapter: Adapter,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; ADAPTER.onnx here if left out.", show_default=False),
    ] = None,
    format: Annotated[str, typer.Option(help="onnx is the one there is.")] = "onnx",
    images: Annotated[
        str | None,
        typer.Option(
            help="A folder or pattern of images to compare the file with torch on; drawn noise if "
            "left out."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, as JSON.")] = False,
) -> None:
    """Write an adapter with its backbone as one file that runs without torch: pixels to classes.

    Class names, how to prepare an image and thresholds are in the file's metadata;
    examples/onnx_without_torch.py reads them with numpy. Needs the extra 'onnx'.
    """
    name = Path(os.path.abspath(adapter)).name or "adapter"  # "." is called as its folder is
    target = Path(f"{name}.{format}") if out is None else out
    check_file(target)
    begin(f"Exporting {adapter}.")
    from ..app.exporting import export_adapter

    found = export_adapter(adapter, target, format=format, images=images)
    tell(found.lines(), found.as_dict() if as_json else None)
