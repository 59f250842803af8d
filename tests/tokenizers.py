"""A CLIP tokenizer of single characters, made on the spot."""

import string

from transformers import CLIPTokenizer

CHARACTERS = string.ascii_lowercase + string.digits + ".,'-"


def clip_tokenizer() -> CLIPTokenizer:
    tokens = [*CHARACTERS, *(c + "</w>" for c in CHARACTERS)]
    vocabulary = ["<|startoftext|>", *tokens, "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(vocabulary)}, merges=[])


VOCABULARY = len(clip_tokenizer())
