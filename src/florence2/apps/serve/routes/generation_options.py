"""The generation config of a request, from the options that clients send under several names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from florence2 import GenerationConfig
from florence2.apps.serve.request_limits import RequestError
from florence2.errors import UserError

_MAX_SEED = 2**63 - 1


def generation_config(options: Mapping[str, Any], default: GenerationConfig) -> GenerationConfig:
    """Make the config of a request; what it does not name is the server's default.

    `max_tokens` above the server's is cut to it, and a negative one is no limit of the client. A `temperature` above 0
    samples, as in every server of this protocol; without one, or with 0, the most likely token is taken. Unknown
    options are ignored.
    """
    temperature = _number(options, "temperature", 0.0, 100.0)
    max_tokens = _first_integer(options, "max_completion_tokens", "max_tokens", "num_predict", "max_length")
    if max_tokens == 0 and "num_predict" not in options:  # Ollama's clients send 0 for no limit
        raise RequestError("the maximum number of tokens is 0", "send 1 or more")
    longest = default.max_length if max_tokens is None or max_tokens < 1 else min(max_tokens, default.max_length)
    num_beams = _first_integer(options, "num_beams")
    is_sampled = bool(temperature)
    values: dict[str, Any] = {"max_length": longest, "num_beams": 1 if is_sampled else default.num_beams}
    if num_beams is not None:
        if num_beams > default.num_beams:
            raise RequestError(
                f"`num_beams` is {num_beams}, above the {default.num_beams} of the server",
                f"send at most {default.num_beams}, or start the server with `--num_beams {num_beams}`",
            )
        values["num_beams"] = num_beams
    if is_sampled and temperature is not None:
        # Rounded, so that clients share searches: each distinct search costs a pass over the logits of all slots.
        top_p = _number(options, "top_p", 0.0, 1.0)
        top_k = _first_integer(options, "top_k") or 0
        values |= {"do_sample": True, "temperature": max(round(temperature, 2), 0.01)}
        values |= {"top_p": max(round(1.0 if top_p is None else top_p, 2), 0.01), "top_k": max(top_k, 0)}
        values |= {"seed": _first_integer(options, "seed") or 0}
    try:
        return GenerationConfig(**values)
    except UserError as error:
        raise RequestError.of(error) from error


def stop_words(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the words that end a text: `stop`, one or a list; empty ones end nothing."""
    stop = options.get("stop")
    words = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise RequestError("`stop` is not a text", "send a text, or a list of texts")
    return tuple(filter(None, words))


def _number(options: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise RequestError(f"`{name}` is not a number", f"send a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise RequestError(f"`{name}` is {value:g}", f"send a number from {low:g} to {high:g}")
    return float(value)


def _first_integer(options: Mapping[str, Any], *names: str) -> int | None:
    """Return the first option that is set."""
    for name in names:
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > _MAX_SEED:
            raise RequestError(f"`{name}` is not an integer", "send an integer")
        return int(value)
    return None
