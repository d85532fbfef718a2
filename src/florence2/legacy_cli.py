"""The published commands' flags, in the words of `florence2 train` and `florence2 predict`.

Flags that both know pass through untouched; this page holds only the others: renamed, reworded, or refused with
the flag that does the same today.
"""

import ast
from collections.abc import Callable, Sequence

from florence2.errors import UserError

Values = list[str]
Rewrite = Callable[[Values], list[str]]


def _renamed(flag: str) -> Rewrite:
    return lambda values: [flag, *values]


def _fixed(*words: str) -> Rewrite:
    return lambda values: [*words, *values]


def _door(flag: str, key: str, default: str = "true") -> Rewrite:
    return lambda values: [flag, f"{key}={values[0] if values else default}"]


def _refused(flag: str, hint: str) -> Rewrite:
    def refuse(_: Values) -> list[str]:
        raise UserError(f"`{flag}` is not offered", hint)

    return refuse


def _optimizer(values: Values) -> list[str]:
    known = {
        "adamw": "adamw_torch",
        "adamw8bit": "adamw_bnb_8bit",
        "prodigyplusschedulefree": "prodigyplus.ProdigyPlusScheduleFree",
    }
    name = values[0] if values else ""
    if name.lower() == "flora":
        raise UserError("`--optimizer_name Flora` is not offered", "pass `--optim adafactor`, or a class of your own")
    return ["--optim", known.get(name.lower(), name)]


def _optimizer_args(values: Values) -> list[str]:
    text = " ".join(values)
    if not text.startswith("{"):
        return ["--optimizer_args", *values]
    try:
        given = dict(ast.literal_eval(text.replace("true", "True").replace("false", "False")))
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"`--optimizer_args {text}` is not a dictionary", "pass `--optimizer_args key=value`"
        ) from error
    return ["--optimizer_args", *(f"{key}={value}" for key, value in given.items())]


_FLORA = "it belonged to Flora; pass `--optim` and `--optimizer_args key=value`"
_SUFFIX = "pass `--caption_extension _combined.txt` to read `a_combined.txt` beside `a.jpg`"

TRAIN: dict[str, Rewrite] = {
    "--activation_checkpointing": _fixed("--gradient_checkpointing"),
    "-ac": _fixed("--gradient_checkpointing"),
    "--rslora": _door("--lora_args", "use_rslora"),
    "--init_lora_weights": _door("--lora_args", "init_lora_weights", "gaussian"),
    "--name": _door("--trainer_args", "run_name", "florence2"),
    "--optimizer_name": _optimizer,
    "--optimizer_args": _optimizer_args,
    "--caption_file_suffix": lambda values: ["--caption_extension", f"{''.join(values)}.txt"],
    "--debug_dataset": _fixed("--preview", "8"),
    "--accumulation_rank": _refused("--accumulation_rank", _FLORA),
    "--optimizer_rank": _refused("--optimizer_rank", _FLORA),
    "--combined_suffix": _refused("--combined_suffix", _SUFFIX),
    "--generated_suffix": _refused("--generated_suffix", _SUFFIX),
}

PREDICT: dict[str, Rewrite] = {
    "--peft_model": _renamed("--model_path"),
    "--base_model": _refused("--base_model", "an adapter names its base itself; pass it as `--model_path`"),
    "--images": _renamed("--input_path"),
    "--save_captions": _fixed("--sidecar", ".txt"),
    "--caption_extension": _renamed("--sidecar"),
    "--overwrite": _fixed("--if_exists", "overwrite", "--overwrite_output"),
    "--append": _fixed("--if_exists", "append"),
    "--max_token_length": _renamed("--max_length"),
}


def translate(arguments: Sequence[str], table: dict[str, Rewrite]) -> list[str]:
    """Rewrite a published command line flag by flag; what the table does not name stays as it is."""
    words: list[str] = []
    for flag, values in _grouped(arguments):
        rewrite = table.get(flag if flag == "-ac" else flag.replace("-", "_").replace("__", "--", 1))
        words += rewrite(values) if rewrite else [flag, *values]
    return _merged(words)


def _grouped(arguments: Sequence[str]) -> list[tuple[str, Values]]:
    groups: list[tuple[str, Values]] = []
    for word in arguments:
        if word.startswith("--") or word == "-ac" or not groups:
            flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def _merged(words: list[str]) -> list[str]:
    """Join the values of a flag that several published flags became (`--lora_args a=1 --lora_args b=2`)."""
    groups: dict[str, Values] = {}
    loose: list[str] = []
    for flag, values in _grouped(words):
        if flag in {"--lora_args", "--trainer_args", "--optimizer_args"}:
            groups.setdefault(flag, []).extend(values)
        else:
            loose += [flag, *values]
    return loose + [word for flag, values in groups.items() for word in (flag, *values)]
