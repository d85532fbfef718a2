"""Random changes of files: of JSON values, of lines and numbers of a text, of bytes; and a limit of memory."""

import json
import random
import re
import resource
from copy import deepcopy
from pathlib import Path
from typing import Any

NUMBERS = (-1, 0, 1, 3, 0.5, 2**31, 2**63, 10**30, float("nan"))
TEXTS = ("", "x", "../../x", "/etc/passwd", "<loc_5><loc_900>", "\x00\x1b[31m", "a\nb", "nan", "\u202e猫", "\ud800")
VALUES = (*NUMBERS, *TEXTS, None, True, [], [1, 2], {}, {"a": 1})
WORDS = ("nan", "-inf", "1e999", "-7", "", "x", "99999999999999999999", "0x10", "1,5", "<loc_7>", "\x00")
# JSON that `json.dumps` does not write: an integer beyond Python's limit of digits, nesting, infinity, repeated keys.
RAW = (
    "9" * 5000,
    "[" * 100_000 + "]" * 100_000,
    "9" * 400,
    "1e999",
    "-1e-999",
    '"\\ud83d"',
    '{"a": 1, "a": 2}',
    '"\\u0000"',
)
PLACEHOLDER = "raw JSON stands here"
ENTITIES = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
)
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
ENCODINGS = ("utf-16", "utf-8-sig", "cp1252", "latin-1")


def limit_memory(spare: int) -> None:
    """Limit the address space to what the process has, and `spare` bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    used = int(status.split("VmSize:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))


def mutate_file(rng: random.Random, path: Path) -> str:
    """Change a file at random, in a way that suits its kind, and return what was changed."""
    if path.suffix in {".json", ".jsonl"} and rng.random() < 0.6:
        try:
            return mutate_json(rng, path)
        except (ValueError, RecursionError):  # an earlier change has damaged it
            return mutate_bytes(rng, path)
    if path.suffix in {".txt", ".csv", ".xml", ".yaml", ".jsonl", ".names", ".data"} and rng.random() < 0.7:
        return mutate_text(rng, path)
    return mutate_bytes(rng, path)


def mutate_json(rng: random.Random, path: Path) -> str:
    """Replace or remove values of a JSON file, or of one line of a JSONL file."""
    lines = (
        path.read_text(encoding="utf-8-sig").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8-sig")]
    )
    number = rng.randrange(len(lines))
    content = json.loads(lines[number])
    changes = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        parent, key = pick_entry(rng, content)
        if parent is None:
            break
        chance = rng.random()
        if chance < 0.15:
            del parent[key]
            changes.append(f"{key} removed")
        elif chance < 0.25 and isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), deepcopy(parent[key]))
            changes.append(f"{key} repeated")
        else:
            parent[key] = PLACEHOLDER if chance > 0.9 else deepcopy(rng.choice(VALUES))
            changes.append(f"{key} = {parent[key]!r}")
    lines[number] = json.dumps(content).replace(json.dumps(PLACEHOLDER), rng.choice(RAW))
    path.write_text("\n".join(lines), encoding="utf-8")
    return ", ".join(changes)


def pick_entry(rng: random.Random, content: Any) -> tuple[Any, Any]:
    """Choose an entry at any depth, the outer ones more often."""
    parent, key = None, None
    while isinstance(content, dict | list) and content and (parent is None or rng.random() < 0.7):
        parent = content
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        content = content[key]
    return parent, key


def mutate_text(rng: random.Random, path: Path) -> str:
    """Change numbers, lines, the encoding or the prolog of a text file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    kind = rng.choice(("number", "number", "number", "word", "repeat", "drop", "encode", "long", "prolog"))
    lines = text.splitlines() or [""]
    number = rng.randrange(len(lines))
    if kind in {"number", "word"}:
        pattern = r"-?\d+(?:\.\d+)?" if kind == "number" else r"\w+"
        found = list(re.finditer(pattern, text))
        if found:
            match, word = rng.choice(found), rng.choice(WORDS)
            text = text[: match.start()] + word + text[match.end() :]
    elif kind == "encode":
        path.write_bytes(text.encode(rng.choice(ENCODINGS), errors="replace"))
        return kind
    elif kind == "prolog":
        text = rng.choice((ENTITIES + "]>", EXTERNAL, "!!python/object/apply:os.system ['true']\n")) + text
    else:
        long = lines[number] * min(10_000, 1_000_000 // max(len(lines[number]), 1) + 1)
        lines[number : number + 1] = {"repeat": [lines[number]] * 2, "drop": [], "long": [long]}[kind]
        text = "\n".join(lines)
    path.write_text(text, encoding="utf-8")
    return f"{kind} at line {number + 1}"


def mutate_bytes(rng: random.Random, path: Path) -> str:
    """Cut, extend or overwrite the bytes of a file, mostly in its header."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("cut", "zeros", "noise", "flip", "flip", "flip", "extend"))
    position = rng.randrange(min(len(data), rng.choice((8, 64, 4096, len(data))))) if data else 0
    if kind == "cut":
        data = data[:position]
    elif kind == "zeros":
        data[position : position + 64] = bytes(64)
    elif kind == "noise":
        data[position : position + 16] = rng.randbytes(16)
    elif kind == "flip" and data:
        data[position] ^= 1 << rng.randrange(8)
    else:
        data += rng.randbytes(100)
    path.write_bytes(data)
    return f"{kind} at {position}"
