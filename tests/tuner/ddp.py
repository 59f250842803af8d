"""What each process of test_ddp.py runs: bases from its share of the images, then the Trainer."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import Subset
from transformers import Trainer

from residual_peft.solvers.training import trainer_kwargs, training_arguments
from residual_peft.tuner import fit_bases
from tests.models import pixels
from tests.training_case import adapted_classifier, task

BATCH, STEPS = 8, 12


def train(out: Path, processes: int, rank: int) -> None:
    """Fit and train; the first process saves the adapter under `out`."""
    classifier = adapted_classifier()
    shares = pixels(64, seed=3).split(8)[rank::processes]
    fit_bases(classifier.model, shares, across_processes=processes > 1)
    arguments = training_arguments(
        out / "runs",
        per_device_train_batch_size=BATCH // processes,
        max_steps=STEPS,
        learning_rate=0.1,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    options = trainer_kwargs(classifier, task(80), arguments)
    # or two processes would fill the last, smaller batch with images of their own
    options["train_dataset"] = Subset(options["train_dataset"], range(6 * BATCH))
    trainer = Trainer(**options)
    assert trainer.args.world_size == processes
    trainer.train()
    gains = [p.detach() for p in classifier.model.parameters() if p.requires_grad]
    torch.save(gains, out / f"gains{rank}.pt")
    if rank == 0:
        classifier.model.save_pretrained(out / "adapter")


if __name__ == "__main__":
    state = PartialState(cpu=True)
    assert state.backend == "gloo", state.backend
    train(Path(sys.argv[1]), state.num_processes, state.process_index)
