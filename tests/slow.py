"""Slow, obvious twins in float64: loops over layers and heads, no hooks, nothing of the package."""

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from residual_peft.towers.units import Unit

INSIDE = ("vision_model", "vit", "deit", "dinov2", "dinov2_with_registers")


def tower_of(model: nn.Module) -> Any:
    names = [name for name in INSIDE if hasattr(model, name)]
    return getattr(model, names[0]) if names else model


def final_norm_of(model: nn.Module) -> Any:
    if hasattr(model, "visual"):
        return model.visual.ln_post
    tower = tower_of(model)
    names = [name for name in ("post_layernorm", "layernorm", "norm") if hasattr(tower, name)]
    return getattr(tower, names[0])


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / sigma * norm.weight.double() + norm.bias.double()


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return x @ layer.weight.double().T + layer.bias.double()


@torch.no_grad()
def slow_streams(model: nn.Module, pixel_values: Tensor) -> tuple[dict[Unit, Tensor], Tensor]:
    """What each unit writes to the stream at the class token, (B, D), and the stream's end."""
    if hasattr(model, "visual"):
        return open_clip_streams(model.visual, pixel_values.double())
    tower = tower_of(model)
    if not hasattr(tower, "pre_layrnorm"):
        return recorded_streams(tower, pixel_values)
    embeddings = tower.embeddings
    patches = nn.functional.conv2d(
        pixel_values.double(),
        embeddings.patch_embedding.weight.double(),
        stride=embeddings.patch_size,
    )
    patches = patches.flatten(2).transpose(1, 2)
    token = embeddings.class_embedding.double().expand(len(patches), 1, -1)
    stream = torch.cat([token, patches], 1) + embeddings.position_embedding.weight.double()
    stream = layer_norm(stream, tower.pre_layrnorm)
    written = {Unit("embed"): stream[:, 0]}
    for index, layer in enumerate(tower.encoder.layers):
        attention, normed = layer.self_attn, layer_norm(stream, layer.layer_norm1)
        heads, size = attention.num_heads, attention.head_dim
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            query, key, value = (
                linear(normed, projection)[..., part]
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            mixed = (query @ key.mT / size**0.5).softmax(-1) @ value
            weight = attention.out_proj.weight.double()[:, part]
            out = mixed @ weight.T + attention.out_proj.bias.double() / heads
            written[Unit("head", index, head)] = out[:, 0]
            stream = stream + out
        hidden = linear(layer_norm(stream, layer.layer_norm2), layer.mlp.fc1)
        quick = tower.config.hidden_act == "quick_gelu"
        active = hidden * torch.sigmoid(1.702 * hidden) if quick else nn.functional.gelu(hidden)
        out = linear(active, layer.mlp.fc2)
        written[Unit("mlp", index)] = out[:, 0]
        stream = stream + out
    return written, stream[:, 0]


@torch.no_grad()
def open_clip_streams(visual: Any, pixel_values: Tensor) -> tuple[dict[Unit, Tensor], Tensor]:
    """The same of open_clip's VisionTransformer."""
    patches = nn.functional.conv2d(
        pixel_values, visual.conv1.weight.double(), stride=visual.patch_size
    )
    patches = patches.flatten(2).transpose(1, 2)
    token = visual.class_embedding.double().expand(len(patches), 1, -1)
    stream = torch.cat([token, patches], 1) + visual.positional_embedding.double()
    if isinstance(visual.ln_pre, nn.LayerNorm):
        stream = layer_norm(stream, visual.ln_pre)
    written = {Unit("embed"): stream[:, 0]}
    for index, block in enumerate(visual.transformer.resblocks):
        attention, normed = block.attn, layer_norm(stream, block.ln_1)
        heads, width = attention.num_heads, attention.embed_dim
        size = width // heads
        scales = [getattr(ls, "gamma", torch.ones(1)).double() for ls in (block.ls_1, block.ls_2)]
        weight, bias = attention.in_proj_weight.double(), attention.in_proj_bias.double()
        for head in range(heads):
            query, key, value = (
                normed @ weight[part].T + bias[part]
                for start in (0, width, 2 * width)
                for part in [slice(start + head * size, start + (head + 1) * size)]
            )
            mixed = (query @ key.mT / size**0.5).softmax(-1) @ value
            outward = attention.out_proj.weight.double()[:, head * size : (head + 1) * size]
            out = scales[0] * (mixed @ outward.T + attention.out_proj.bias.double() / heads)
            written[Unit("head", index, head)] = out[:, 0]
            stream = stream + out
        hidden = linear(layer_norm(stream, block.ln_2), block.mlp.c_fc)
        quick = type(block.mlp.gelu).__name__ == "QuickGELU"
        active = hidden * torch.sigmoid(1.702 * hidden) if quick else nn.functional.gelu(hidden)
        out = scales[1] * linear(active, block.mlp.c_proj)
        written[Unit("mlp", index)] = out[:, 0]
        stream = stream + out
    return written, stream[:, 0]


@torch.no_grad()
def recorded_streams(tower: Any, pixel_values: Tensor) -> tuple[dict[Unit, Tensor], Tensor]:
    """The same of a ViT or DINO: all that its modules take and give, sorted out by their names."""
    tower, given, taken = copy.deepcopy(tower).double().eval(), {}, {}
    for name, module in tower.named_modules():

        def record(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            taken[name], given[name] = args[0] if args else None, output

        module.register_forward_hook(record)
    tower(pixel_values.double())
    written = {Unit("embed"): given["embeddings"][:, 0]}
    projections = [n for n in given if re.search(r"attention\.(o_proj|output\.dense)$", n)]
    mlps = [n for n in given if re.search(r"(\d+\.mlp|\d+\.output\.dense)$", n)]
    for index, (path, mlp) in enumerate(zip(projections, mlps, strict=True)):
        block = tower.get_submodule(mlp.removesuffix(".output.dense").removesuffix(".mlp"))
        scales = [
            getattr(getattr(block, name, None), "lambda1", torch.ones(1))
            for name in ("layer_scale1", "layer_scale2")
        ]
        linear, heads = tower.get_submodule(path), tower.config.num_attention_heads
        size = linear.in_features // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            out = taken[path][:, 0, part] @ linear.weight[:, part].T
            bias = 0.0 if linear.bias is None else linear.bias / heads
            written[Unit("head", index, head)] = scales[0] * (out + bias)
        written[Unit("mlp", index)] = scales[1] * given[mlp][:, 0]
    norm = next(name for name in ("layernorm", "norm") if name in given)
    return written, taken[norm][:, 0]


@torch.no_grad()
def slow_contributions(model: Any, pixel_values: Tensor) -> dict[Unit, Tensor]:
    """x_u of every unit (B, d), and the readout itself under `output`; method.md, section 1."""
    written, stream = slow_streams(model, pixel_values)
    norm = final_norm_of(model)
    projection = torch.eye(stream.shape[1], dtype=torch.float64)
    if hasattr(model, "visual_projection"):
        projection = model.visual_projection.weight.double()
    if getattr(getattr(model, "visual", None), "proj", None) is not None:
        projection = model.visual.proj.double().T
    sigma = (stream.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
    found = {}
    for unit, value in written.items():
        centred = value - value.mean(1, keepdim=True)
        found[unit] = (centred * norm.weight.double() / sigma) @ projection.T
    found[Unit("output")] = layer_norm(stream, norm) @ projection.T
    return found


def slow_pca(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), directions (r, d) and eigenvalues (r,) by one full SVD of all samples."""
    mean = samples.mean(0)
    _, singular, directions = torch.linalg.svd(samples - mean, full_matrices=False)
    return mean, directions, singular.square() / (len(samples) - 1)
