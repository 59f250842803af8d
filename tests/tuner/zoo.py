"""One model with adapters of all kinds in readout mode."""

import torch
from peft import PeftModel, get_peft_model

from residual_peft.tuner import ResiDualConfig, fit_bases
from tests.models import BUILDERS, pixels
from tests.tuner.twin import IMAGES, randomize_gains

KINDS = {
    "all": ({}, 5),
    "other images": ({}, 6),
    "few": ({"components": 2}, 5),
    "share": ({"components": 0.7, "restore_mean": False}, 7),
    "heads": ({"units": ("head",), "component_pattern": {"layer0.head1": 1}}, 8),
    "drop": ({"units": ("head",), "components": 0.9, "remainder": "drop"}, 9),
    "coarse": ({"units": ("head",), "granularity": "unit", "restore_mean": False}, 5),
}


def zoo(builder: str = "CLIPModel", dtype: torch.dtype = torch.float64) -> PeftModel:
    model = None
    for seed, (name, (options, images)) in enumerate(KINDS.items()):
        config = ResiDualConfig(**options)
        if model is None:
            model = get_peft_model(BUILDERS[builder]().to(dtype), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        fit_bases(model, [pixels(IMAGES, seed=images).to(dtype)], name)
        randomize_gains(model, name, seed=seed)
    return model.eval()
