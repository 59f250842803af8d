"""Pretrains the bundled CLIP from scratch: `python benchmarks/pretraining.py`.

The loss is contrastive between images and captions of the drawn world. A caption is a positive of
every image that it is true of, so equal captions are positives of each other's images and short
captions have many. Besides captions that name several attributes, every step shows all values of
each attribute in one prompt. The learning rate is constant and decays linearly in the last steps; a
run that stopped goes on from its last checkpoint and draws the images that it would have drawn.
"""

import argparse
import copy
import json
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from captions import caption_truth, captions, vocabulary_text
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from residual_peft.demo.drawing import IMAGE_SIZE, draw
from residual_peft.demo.tasks import image_embeddings, text_embeddings, zero_shot_accuracy
from residual_peft.demo.world import ATTRIBUTES, TEMPLATES, Scene, prompts, sample_scenes
from residual_peft.hub.files import atomic_directory, atomic_file, read_json, write_json

CONTEXT_LENGTH = 32
WARM_UP = 400  # steps


def build_tokenizer(merges: int = 160) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer: all bytes, so that it reads any text, and the world's words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shell = CLIPTokenizer()
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = shell.backend_tokenizer.normalizer
    learner.pre_tokenizer = shell.backend_tokenizer.pre_tokenizer
    learner.train_from_iterator(
        vocabulary_text(),
        trainers.BpeTrainer(
            vocab_size=2 * len(alphabet) + merges,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    learned = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    tokens = alphabet + [byte + "</w>" for byte in alphabet]
    tokens += list(dict.fromkeys(left + right for left, right in learned))
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=learned,
        model_max_length=CONTEXT_LENGTH,
    )


@dataclass(frozen=True)
class Shape:
    """Of the image tower; the text tower is the same beside all."""

    layers: int = 6  # how many
    heads: int = 8  # of each layer
    width: int = 128  # of the stream
    patch: int = 8  # pixels of a patch each way


def build_model(tokenizer: CLIPTokenizer, seed: int, shape: Shape | None = None) -> CLIPModel:
    """The untrained model: 6 layers of 8 heads for images unless told, 3 layers for text."""
    shape = shape or Shape()
    config = CLIPConfig(
        projection_dim=128,
        vision_config={
            "hidden_size": shape.width,
            "intermediate_size": 4 * shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "image_size": IMAGE_SIZE,
            "patch_size": shape.patch,
            "projection_dim": 128,
        },
        text_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT_LENGTH,
            "projection_dim": 128,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    torch.manual_seed(seed)
    return CLIPModel(config)


def _several_positives(logits: Tensor, truth: Tensor) -> Tensor:
    """Minus the mean log-probability of each row's positives (Khosla et al. 2020, L_out)."""
    weight = truth / truth.sum(1, keepdim=True).clamp(min=1)
    rows = truth.any(1)
    return -(weight * logits.log_softmax(1)).sum(1)[rows].mean()


def loss(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    scene: Scene,
    images: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The contrastive loss of one batch."""
    count = 3 * len(scene) // 8  # every image has a caption in mind; so many are spelled out
    captioned = scene[:count]
    share = 0.2 + 0.7 * torch.rand(count, 1, generator=generator)
    named = torch.rand(count, len(ATTRIBUTES), generator=generator) < share
    texts = captions(captioned, named, generator)
    truth = caption_truth(scene, captioned, named)
    lists = []
    for name, templates in TEMPLATES.items():
        pick = int(torch.randint(len(templates), (1,), generator=generator))
        lists.append(prompts(name, templates[pick]))
    scale = model.logit_scale.exp()
    image = image_embeddings(model, images)
    long = scale * image @ text_embeddings(model, tokenizer, texts).T
    short = scale * image @ text_embeddings(model, tokenizer, list(chain.from_iterable(lists))).T
    total = (_several_positives(long, truth) + _several_positives(long.T, truth.T)) / 2
    start, terms = 0, []
    for name, group in zip(TEMPLATES, lists, strict=True):
        labels = scene.values[name]
        if (labels >= 0).any():
            logits = short[:, start : start + len(group)]
            terms.append(F.cross_entropy(logits, labels, ignore_index=-1))
        start += len(group)
    return total + 2 * torch.stack(terms).mean()


def pretrain(
    out: Path,
    *,
    steps: int,
    decay: int,
    batch: int,
    rate: float,
    seed: int,
    every: int = 1000,
    shape: Shape | None = None,
) -> CLIPModel:
    """Train, with a checkpoint and a line in `log.jsonl` every `every` steps.

    A checkpoint taken before the decay began also serves a longer run: `steps` may grow.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed, shape)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    checkpoint, first, images = out / "checkpoint.pt", 0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, images = state["step"], state["images"]
    started, mean = time.perf_counter(), 0.0
    for step in range(first, steps):
        model.train()
        generator = torch.Generator().manual_seed(seed * 10**7 + step)
        scene = sample_scenes(batch, generator)
        value = loss(model, tokenizer, scene, draw(scene, generator), generator)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP, (steps - step) / max(decay, 1))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        images += batch
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        mean += (value.item() - mean) / min(step - first + 1, 100)
        if (step + 1) % every == 0 or step + 1 == steps:
            seconds = time.perf_counter() - started
            scores = zero_shot_accuracy(model, tokenizer)
            line = {
                "step": step + 1,
                "images": images,
                "loss": round(mean, 4),
                "images_per_second": round((step + 1 - first) * batch / seconds),
                "scale": round(model.logit_scale.exp().item(), 1),
                "zero_shot": {name: round(score, 3) for name, score in scores.items()},
            }
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            state = {"step": step + 1, "images": images, "model": model.state_dict()}
            with atomic_file(checkpoint) as temporary:
                torch.save(state | {"optimizer": optimizer.state_dict()}, temporary)
    return model


def export(model: CLIPModel, tokenizer: CLIPTokenizer, directory: Path) -> None:
    """Save the model as transformers loads it: weights in half precision, used in float32."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with atomic_directory(directory) as temporary:
        copy.deepcopy(model).half().save_pretrained(temporary)
        config = read_json(temporary / "config.json")
        # half precision is for the wheel's sake only; arithmetic on CPUs wants float32
        for part in (config, config["text_config"], config["vision_config"]):
            part.pop("torch_dtype", None)
            part["dtype"] = "float32"
        write_json(temporary / "config.json", config)
        tokenizer.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("pretraining"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--decay", type=int, default=2_500, help="steps of linear decay at the end")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    for name, number in vars(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=number, help="of the image tower")
    parser.add_argument("--export", type=Path, help="save the finished model in this directory")
    options = vars(parser.parse_args())
    directory = options.pop("export")
    shape = Shape(**{name: options.pop(name) for name in vars(Shape())})
    model = pretrain(options.pop("out"), shape=shape, **options)
    if directory is not None:
        export(model, build_tokenizer(), directory)


if __name__ == "__main__":
    main()
