"""All of a model that a refused load must leave as it was."""

from typing import Any

import torch
from torch import nn


def portrait(model: nn.Module) -> dict[str, Any]:
    """Its modules, values, flags, hooks, adapters and attributes, to compare with `==`."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = [len(value) for key, value in sorted(vars(module).items()) if "_hooks" in key]
        config = vars(module).get("peft_config")
        active = vars(module).get("_active_adapter", vars(module).get("active_adapter"))
        found[f"module {name}"] = (
            type(module),
            id(module),
            module.training,
            hooks,
            sorted(vars(module)),
            None if config is None else [(key, id(value)) for key, value in config.items()],
            list(active) if isinstance(active, list) else active,
            vars(module).get("_disable_adapters"),
        )
    for name, tensor in model.state_dict(keep_vars=True).items():
        bits = tensor.detach().contiguous().flatten().view(torch.uint8)
        found[f"tensor {name}"] = tensor.requires_grad, tensor.dtype, bits.numpy().tobytes()
    return found
