"""What strangers' folders may hold: one seed -> a few faults in a folder's files."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

TYPES = (
    None, True, False, -1, 0, 1, 2, 1.5, -0.0, 1e308, 10**6, 10**9, 10**18, 2**63, "", "x", "0.5",
    "\x1b[2J\x1b]0;owned\x07", "a\nresidual-peft: done", "\ud800", "../../etc/passwd",
    "/dev/zero",
    "((\\w|\\.)+)+X", "layer0.head0", "layer" + "9" * 6000 + ".mlp", "x" * 100_000, "\0",
    "~nobody/x",
    [], {}, [[]], [None], [0], ["x"], {"x": 1}, {"": None}, [1] * 100_000, ["head"] * 3,
    {"height": 10**5}, "float32", "auto-mapping", "LORA", "bfloat16", "__class__", "load",
)  # fmt: skip
RAW = (
    b"", b"null", b"[]", b"{}", b"\xef\xbb\xbf{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000,
    b"9" * 5000, b'{"a": NaN}', b"\0" * 1000, b"\x80\x04\x95.", b"PK\x03\x04", b'{"a":1,"a":2}',
)  # fmt: skip
FIELDS = (
    "layers_to_transform", "exclude_modules", "modules_to_save", "auto_mapping", "revision",
    "inference_mode",
    "peft_type", "task_type", "base_model_name_or_path", "unit_pattern", "component_pattern",
    "basis",
    "component_counts", "units", "fingerprint", "num_samples", "target_modules", "megatron_core",
    "auto_map", "quantization_config", "num_labels", "id2label", "dtype", "class_names", "split",
)  # fmt: skip


def spoil(folder: Path, seed: int, others: Path) -> list[str]:
    """Make one to three faults.

    Args:
        folder: a copy of a good one.
        seed: of the faults.
        others: where the good folders of all kinds lie.

    Returns:
        What was done, in words.
    """
    chance = random.Random(seed)
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        if not files:
            break
        texts = [p for p in files if p.suffix == ".json"]
        tensors = [p for p in files if p.suffix == ".safetensors"]
        kind = chance.choices((_json, _header, _tensors, _bytes, _file), (8, 2, 3, 2, 2))[0]
        chosen = {_json: texts, _header: tensors, _tensors: tensors}.get(kind) or files
        if kind in (_json, _header, _tensors) and chosen is files:
            kind = _bytes
        path = chance.choice(chosen)
        try:
            what = kind(path, chance, others)
        except (ValueError, LookupError, OSError, RecursionError, TypeError, MemoryError):
            continue  # an earlier fault has left nothing to do this to
        done.append(f"{path.relative_to(folder)}: {what}")
    return done


def _json(path: Path, chance: random.Random, others: Path) -> str:
    whole = json.loads(path.read_text())
    what = _change(whole, chance)
    path.write_text(json.dumps(whole))
    return what


def _change(whole: Any, chance: random.Random) -> str:
    """Change one place of a JSON value."""
    places = list(_places(whole))
    owner, key = chance.choice(places)
    kind = chance.randrange(8)
    if kind == 0:
        del owner[key]
        return f"without {key!r}"
    if kind == 1 and isinstance(owner, dict):
        name = chance.choice(FIELDS)
        owner[name] = value = chance.choice(TYPES)
        return f"with {name!r}: {str(value)[:60]!r}"
    if kind == 2:
        other, name = chance.choice(places)
        owner[key] = json.loads(json.dumps(other[name]))
        return f"{key!r} as {name!r}"
    if kind == 3 and isinstance(owner[key], int | float):
        owner[key] = value = owner[key] * chance.choice((-1, 2, 10, 1000, 0.5)) + 1
        return f"{key!r}: {value}"
    if kind == 4 and isinstance(owner[key], list) and owner[key]:
        owner[key] = owner[key] * chance.choice((2, 10, 1000))
        return f"{key!r} repeated"
    if kind == 5:
        value: Any = 0
        for _ in range(chance.choice((10, 70, 500))):
            value = [value] if chance.random() < 0.5 else {"a": value}
        owner[key] = value
        return f"{key!r} deep"
    if kind == 6:
        owner[key] = value = chance.choice((float("nan"), float("inf"), -float("inf"), 10**400))
        return f"{key!r}: {str(value)[:20]}"
    owner[key] = value = chance.choice(TYPES)
    return f"{key!r}: {str(value)[:60]!r}"


def _places(value: Any) -> Any:
    """Every place of a JSON value, as its owner and its key or number."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(inside) if isinstance(value, dict | list) else ():
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def _split(path: Path) -> tuple[Any, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _join(path: Path, header: Any, body: bytes, length: int | None = None) -> None:
    text = json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + body)


def _header(path: Path, chance: random.Random, others: Path) -> str:
    header, body = _split(path)
    if chance.random() < 0.2:
        length = chance.choice((0, 1, 2**63, 2**40, 10**8, len(json.dumps(header)) + 8))
        _join(path, header, body, length)
        return f"a header of {length}"
    what = _change(header, chance)
    _join(path, header, body)
    return f"header {what}"


def _tensors(path: Path, chance: random.Random, others: Path) -> str:
    """Change a tensor such that the file stays a whole safetensors file."""
    header, body = _split(path)
    names = [name for name in header if name != "__metadata__"]
    name = chance.choice(names)
    entry = header[name]
    start, end = entry["data_offsets"]
    kind = chance.randrange(6)
    if kind == 0 and entry["dtype"] == "F32":
        value = chance.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f"))
        body = body[:start] + value * ((end - start) // 4) + body[end:]
        what = f"{name} all {value.hex()}"
    elif kind == 1:
        numbers = (end - start) // 4
        entry["shape"] = chance.choice(([numbers], [1, numbers], [numbers, 1], [1] * 8 + [numbers]))
        what = f"{name} of shape {entry['shape']}"
    elif kind == 2:
        entry["dtype"] = chance.choice(("I32", "U32", "BF16", "F8_E4M3", "BOOL", "I64", "F4", "X"))
        what = f"{name} as {entry['dtype']}"
    elif kind == 3:
        new = chance.choice((*FIELDS, name + ".more", "base_model.model.visual_projection.weight"))
        header[new] = header.pop(name)
        what = f"{name} called {new}"
    elif kind == 4:
        new = chance.choice((name + ".b", "base_model.model.visual_projection.weight", "x"))
        size = chance.choice((0, 4, 64))
        header[new] = {
            "dtype": "F32",
            "shape": [size],
            "data_offsets": [len(body), len(body) + 4 * size],
        }
        body += bytes(4 * size)
        what = f"{new} besides"
    else:
        old = {n: body[slice(*header[n]["data_offsets"])] for n in names if n != name}
        body = b""
        for other, content in old.items():
            header[other]["data_offsets"] = [len(body), len(body) + len(content)]
            body += content
        del header[name]
        what = f"without {name}"
    _join(path, header, body)
    return what


def _bytes(path: Path, chance: random.Random, others: Path) -> str:
    content = path.read_bytes()
    kind = chance.randrange(4)
    if kind == 0:
        content, what = content[: chance.randrange(len(content) + 1)], "cut short"
    elif kind == 1 and content:
        place = chance.randrange(min(len(content), 4096))
        content = content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]
        what = f"another byte at {place}"
    elif kind == 2:
        place = chance.randrange(len(content) + 1)
        content, what = content[:place] + chance.choice(RAW) + content[place:], "bytes put in"
    else:
        content, what = chance.choice(RAW), "other bytes"
    path.write_bytes(content)
    return f"{what}, {content[:20]!r}"


def _file(path: Path, chance: random.Random, others: Path) -> str:
    kind = chance.choice(
        ("gone", "pipe", "folder", "link", "circle", "zero", "other", "more", "far")
    )
    if kind == "more":
        names = ("adapter_config.json", "config.json", "adapter_model.bin", "processor_config.json")
        names += ("model.safetensors.index.json", "tokenizer_config.json", "metadata.jsonl")
        names += (
            "preprocessor_config.json",
            "state.json",
            "dataset_info.json",
            "special_tokens_map.json",
        )
        new = path.parent / chance.choice(names)
        new.write_bytes(chance.choice(RAW))
        return f"{new.name} besides"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "far":
        with path.open("wb") as file:
            file.truncate(chance.choice((10**8, 10**10, 10**13)))
    elif kind in ("link", "other"):
        same = [p for p in others.rglob(f"*{path.suffix}") if p.is_file()]
        source = chance.choice(sorted(same))
        path.symlink_to(source) if kind == "link" else shutil.copy(source, path)
    return kind
