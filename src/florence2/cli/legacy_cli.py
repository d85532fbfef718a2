"""Translation of the flags of the published commands to those of `florence2 train` and `florence2 predict`.

Flags that both have pass through unchanged. The tables list the others: renamed, rewritten, or refused with the flag
that does the same today.
"""

import ast
from collections.abc import Callable, Sequence

from florence2.errors import OptionError

Values = list[str]
Rewrite = Callable[[Values], list[str]]


def _renamed(flag: str) -> Rewrite:
    return lambda values: [flag, *values]


def _fixed(*words: str) -> Rewrite:
    return lambda values: [*words, *values]


def _pair(flag: str, key: str, default: str = "true") -> Rewrite:
    return lambda values: [flag, f"{key}={values[0] if values else default}"]


def _refused(flag: str, hint: str) -> Rewrite:
    def refuse(_: Values) -> list[str]:
        raise OptionError(f"`{flag}` is not supported", hint)

    return refuse


def _optimizer(values: Values) -> list[str]:
    names = {
        "adamw": "adamw_torch",
        "adamw8bit": "adamw_bnb_8bit",
        "prodigyplusschedulefree": "prodigyplus.ProdigyPlusScheduleFree",
    }
    name = values[0] if values else ""
    if name.lower() == "flora":
        raise OptionError(
            "`--optimizer_name Flora` is not supported", "pass `--optim adafactor`, or a class of your own"
        )
    return ["--optim", names.get(name.lower(), name)]


def _optimizer_args(values: Values) -> list[str]:
    text = " ".join(values)
    if not text.startswith("{"):
        return ["--optimizer_args", *values]
    try:
        arguments = dict(ast.literal_eval(text.replace("true", "True").replace("false", "False")))
    except (SyntaxError, ValueError) as error:
        raise OptionError(
            f"`--optimizer_args {text}` is not a dictionary", "pass `--optimizer_args key=value`"
        ) from error
    return ["--optimizer_args", *(f"{key}={value}" for key, value in arguments.items())]


_FLORA = "it is an option of Flora; pass `--optim` and `--optimizer_args key=value`"
_SUFFIX = "pass `--caption_extension _combined.txt` to read `a_combined.txt` beside `a.jpg`"

TRAIN: dict[str, Rewrite] = {
    "--activation_checkpointing": _fixed("--gradient_checkpointing"),
    "-ac": _fixed("--gradient_checkpointing"),
    "--rslora": _pair("--lora_args", "use_rslora"),
    "--init_lora_weights": _pair("--lora_args", "init_lora_weights", "gaussian"),
    "--name": _pair("--trainer_args", "run_name", "florence2"),
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
    "--images": _renamed("--input_path"),
    "--save_captions": _fixed("--sidecar", ".txt"),
    "--caption_extension": _renamed("--sidecar"),
    "--overwrite": _fixed("--if_exists", "overwrite", "--overwrite_output"),
    "--append": _fixed("--if_exists", "append"),
    "--max_token_length": _renamed("--max_length"),
}


def translate(arguments: Sequence[str], table: dict[str, Rewrite]) -> list[str]:
    """Rewrite a published command line flag by flag; flags that the table does not list stay unchanged."""
    words: list[str] = []
    for flag, values in _group_values(arguments):
        rewrite = table.get(flag if flag == "-ac" else flag.replace("-", "_").replace("__", "--", 1))
        words += rewrite(values) if rewrite else _join(flag, values)
    return _merge_pairs(words)


def _group_values(arguments: Sequence[str]) -> list[tuple[str, Values]]:
    groups: list[tuple[str, Values]] = []
    for word in arguments:
        if word.startswith("--") or word == "-ac" or not groups:
            flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def _join(flag: str, values: Values) -> Values:
    """Write a flag with its values; a single value that begins with a dash, which only `=` can pass, keeps its `=`."""
    is_dashed = flag.startswith("--") and len(values) == 1 and values[0].startswith("-")
    return [f"{flag}={values[0]}"] if is_dashed else [flag, *values]


def _merge_pairs(words: list[str]) -> list[str]:
    """Join the values of a flag that several published flags translate to (`--lora_args a=1 --lora_args b=2`)."""
    groups: dict[str, Values] = {}
    others: list[str] = []
    for flag, values in _group_values(words):
        if flag in {"--lora_args", "--trainer_args", "--optimizer_args"}:
            groups.setdefault(flag, []).extend(values)
        else:
            others += _join(flag, values)
    return others + [word for flag, values in groups.items() for word in (flag, *values)]
