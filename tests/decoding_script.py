# No `__main__` guard on purpose: a script as people write them. Run by tests/data/test_decoding.py.
import json
import multiprocessing
import sys

import torch
from transformers import AutoTokenizer

from residual_peft.data import ProcessedImages, batches, decoding
from tests.pictures import PROCESSOR, png, stored

method, kind, folder = sys.argv[1:4]
if method != "default":
    multiprocessing.set_start_method(method)
with open(folder + "/runs", "a") as file:
    file.write("run\n")


class Mine(ProcessedImages):
    pass


items = (Mine if kind == "own class" else ProcessedImages)(
    stored([png(seed=seed) for seed in range(40)]), PROCESSOR
)
if kind == "no pickle":
    items.hook = lambda: None
torch.randn(600, 600) @ torch.randn(600, 600)  # a pool of threads is there
if kind == "tokenizer":  # and another
    AutoTokenizer.from_pretrained(folder)(["a dog"] * 5000)
started = []
real = decoding._started


def recorded(images, pieces, count, batch):
    started.append(count)
    return real(images, pieces, count, batch)


decoding._started = recorded
here = list(batches(items, batch_size=12, num_workers=0))
there = list(batches(items, batch_size=12, num_workers=2))
same = all(torch.equal(a[k], b[k]) for a, b in zip(here, there, strict=True) for k in a)
print(json.dumps({"same": same, "started": started}))
