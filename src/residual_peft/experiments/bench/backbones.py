"""Methods that train through the backbone: LoRA, IA3 and VeRA by PEFT, full fine-tuning, stream.

Each trains a copy of the model, so that the one whose coordinates all other methods share stays bit
for bit what it was. Text embeddings are the class head and stay as they are. AdamW with a warm-up
and a cosine schedule, as in `experiments.lora`; rate and epochs are chosen as `descent` says.
"""

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor, nn

from ...bases.reading import reading
from ...errors import ResiDualError
from ...towers.anatomy import ParameterProjection, TowerAnatomy, path_of
from ...towers.registry import find_tower
from ...towers.running import checked_inputs, run_tower
from ...tuner import ResiDualConfig, adapter_basis, fit_bases
from ..lora import LoraSettings, adapter_bytes
from .descent import Training, train
from .fits import BYTES, Fitted, text_logits
from .machine import on_accelerator
from .pixels import Images

RATES: dict[str, tuple[float, float, float]] = {
    "lora": (1e-3, 3e-3, 1e-2),
    "lora-output": (1e-3, 3e-3, 1e-2),
    "ia3": (3e-2, 1e-1, 3e-1),
    "vera": (3e-2, 1e-1, 3e-1),
    "stream": (1e-1, 3e-1, 1.0),
    "full": (1e-5, 1e-4, 1e-3),
}
"""Three for each, of which the least of `full` is the paper's; around what held-out images of one
draw of handwriting liked best of five (seed 7, which no bench here reports)."""
QUERIES_AND_VALUES = {"q_proj", "query", "q", "v_proj", "value", "v", "qkv"}
WARM_UP, LARGEST_GRADIENT = 0.1, 1.0
VERA_RANK = 256


class Backwards:
    """Weights that are trained through the tower, from where they are now."""

    scheduled = True

    def __init__(self, training: Training, model: nn.Module) -> None:
        self.classifier, self.model = copy(training.rows.classifier), model
        self.classifier.model = model
        self.images, self.labels = training.learned.images, training.learned.data.labels
        self.anatomy = find_tower(model)
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.start = [weight.detach().clone() for weight in self.trained]
        self.optimizer: Any = None
        self.schedule: Any = None

    def begin(self, rate: float, steps: int) -> None:
        """From the start again."""
        with torch.no_grad():
            for weight, value in zip(self.trained, self.start, strict=True):
                weight.copy_(value)
        warm_up = max(1, round(WARM_UP * steps))
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=0.0)
        parts = [
            torch.optim.lr_scheduler.LinearLR(self.optimizer, 1 / (warm_up + 1), 1.0, warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, max(1, steps - warm_up)),
        ]
        self.schedule = torch.optim.lr_scheduler.SequentialLR(self.optimizer, parts, [warm_up])

    def epoch(self, places: Tensor, size: int) -> None:
        """On the classifier's loss, dropout on where the model has any."""
        self.model.train()
        parts = zip(self.images.some(places).batches(size), places.split(size), strict=True)
        for batch, part in parts:
            inputs = checked_inputs(self.anatomy, batch)
            readout = run_tower(self.model, inputs, anatomy=self.anatomy)
            self.optimizer.zero_grad()
            self.classifier.loss(readout, self.labels[part]).backward()  # of the classes trained on
            nn.utils.clip_grad_norm_(self.trained, LARGEST_GRADIENT)
            self.optimizer.step()
            self.schedule.step()

    def logits(self, places: Tensor) -> Tensor:
        """Of learned images."""
        return text_logits(self.classifier, self.encode(self.images.some(places)))

    def encode(self, images: Images) -> Tensor:
        """Readouts (n, d) of the model as it stands, on the CPU."""
        passed = reading(self.model, self.anatomy, images.batches(), adapters=True)
        return torch.cat([seen.readout.cpu() for seen in passed])


def fit_backwards(training: Training, model: nn.Module, rates: Sequence[float]) -> Fitted:
    """Train what requires gradients of a model, a copy of this method's own, at one of `rates`."""
    with on_accelerator(model):
        learner = Backwards(training, model)
        choice = train(learner, training, rates)
    model.eval()
    model.requires_grad_(False)
    count = sum(weight.numel() for weight in learner.trained)
    classifier = learner.classifier
    learner.start, learner.optimizer, learner.schedule = [], None, None

    def encode(images: Images) -> Tensor:
        with on_accelerator(model):
            return learner.encode(images)

    return Fitted(
        lambda data: text_logits(classifier, data.readout),
        count,
        adapter_bytes(model) if isinstance(model, PeftModel) else BYTES * count,
        lambda data: data.readout,
        encode=encode,
        notes=(choice.note,),
    )


def bare(model: Any) -> Any:
    """A copy of a model without its adapters."""
    return deepcopy(model).unload()


def full(training: Training) -> Fitted:
    """All weights that the readout passes through."""
    model = bare(training.rows.classifier.model)
    model.requires_grad_(False)
    for weight in tower_weights(find_tower(model)):
        weight.requires_grad_(True)
    return fit_backwards(training, model, RATES["full"])


def tower_weights(anatomy: TowerAnatomy) -> list[nn.Parameter]:
    """Those of a tower and its projection, without parts that the readout does not pass through."""
    left_out = {id(weight) for part in anatomy.outside for weight in part.parameters()}
    found: list[Any] = list(anatomy.tower.parameters())
    projection = anatomy.projection
    if isinstance(projection, ParameterProjection):
        found.append(getattr(projection.owner, projection.name))
    elif projection is not None:
        found += projection.parameters()
    return [w for w in dict.fromkeys(found) if id(w) not in left_out]


def _peft(name: str, config_of: Callable[[TowerAnatomy, Training], PeftConfig]) -> Any:
    """A method of PEFT on some modules of the image tower."""

    def fit(training: Training) -> Fitted:
        model = bare(training.rows.classifier.model)
        config = config_of(find_tower(model), training)
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)
            adapted = get_peft_model(model, config)
        return fit_backwards(training, adapted, RATES[name])

    return fit


def _lora(anatomy: TowerAnatomy, training: Training) -> PeftConfig:
    rank = LoraSettings().rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=queries_and_values(anatomy))


def _lora_output(anatomy: TowerAnatomy, training: Training) -> PeftConfig:
    """Of the rank that trains as many numbers as there are gains, as nearly as ranks can."""
    linears = [layer.output_projection for layer in anatomy.layers]
    if any(layer.attention is not None for layer in anatomy.layers):
        raise ResiDualError(
            "wanted output projections that are modules of their own, got a fused attention, which "
            "PEFT's layers do nothing in: leave 'lora-output' out, or turn the model into one of "
            "transformers."
        )
    each = sum(linear.in_features + linear.out_features for linear in linears)
    rank = max(1, round(training.rows.data.state.gains.number / each))
    paths = [path_of(anatomy.model, linear) for linear in linears]
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=paths)


def _ia3(anatomy: TowerAnatomy, training: Training) -> PeftConfig:
    return IA3Config(target_modules=queries_and_values(anatomy), feedforward_modules=[])


def _vera(anatomy: TowerAnatomy, training: Training) -> PeftConfig:
    return VeraConfig(
        r=VERA_RANK,
        target_modules=queries_and_values(anatomy),
        projection_prng_key=training.seed,
        save_projection=False,  # drawn anew from its seed
    )


def stream(training: Training) -> Fitted:
    """Gains in the weights; bases of weights where the readout's are, else of these images."""
    model = get_peft_model(
        bare(training.rows.classifier.model), ResiDualConfig(mode="stream", save_basis=False)
    )
    if adapter_basis(training.rows.classifier.model).source != "weights":
        images = training.learned.images.some(torch.arange(len(training.rows.labels)))
        with on_accelerator(model):
            fit_bases(model, images.batches())
        model.peft_config["default"].save_basis = True
    return fit_backwards(training, model, RATES["stream"])


def queries_and_values(anatomy: TowerAnatomy) -> list[str]:
    """Paths of the tower's maps to queries and values; of a fused map to keys as well.

    Raises:
        ResiDualError: they are no modules of a name that is known.
    """
    inside = [module for layer in anatomy.layers for module in layer.module.modules()]
    linears = {id(module) for module in inside if isinstance(module, nn.Linear)}
    named = [path for path, module in anatomy.model.named_modules() if id(module) in linears]
    found = [path for path in named if path.rpartition(".")[2] in QUERIES_AND_VALUES]
    if not found:
        raise ResiDualError(
            f"wanted a tower with Linears called {', '.join(sorted(QUERIES_AND_VALUES))}, got none "
            f"in {anatomy.architecture}: leave out the methods that adapt queries and values."
        )
    return found


BACKBONES: dict[str, Callable[[Training], Fitted]] = {
    "stream": stream,
    "lora": _peft("lora", _lora),
    "lora-output": _peft("lora-output", _lora_output),
    "ia3": _peft("ia3", _ia3),
    "vera": _peft("vera", _vera),
    "full": full,
}
"""By name, in the order of a table."""
