"""Fuzzes a reader, guided by the coverage of this project's code (atheris, which is libFuzzer for Python).

    python -m tests.faults.fuzz READER [--seconds 180] [--runs N] [--seed 0] [--corpus FOLDER]

READER is a name in `fuzz_readers.py` or a folder of `tests/corpus`. Half of the inputs are changed as libFuzzer does,
half as `mutations.py` does for files of that kind. `--seconds` are those of a processor. What should not happen is
counted once for each line of code that raised it, and the first input is saved in `--corpus`, beside the inputs
that reached new code. Prints a JSON object.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import atheris

from tests.faults.mutations import limit_memory, mutate_file

SPARE_MEMORY = 3 << 30
SECONDS = 30  # of a processor, for one input


class TooSlowError(BaseException):
    """Reports a reader that needs more than `SECONDS` of a processor; no reader catches it."""


class Fuzzer:
    """Tries inputs on a reader until a limit, and reports what should not have happened."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        with atheris.instrument_imports(include=["florence2"]):
            self._reader = import_module("tests.faults.fuzz_readers").make_reader(options.reader, folder)
            for seed in self._reader.seeds:  # libraries are loaded
                self._reader.read(seed)
        self._options, self._folder = options, folder
        self._corpus = Path(options.corpus or folder / "new")
        self._corpus.mkdir(parents=True, exist_ok=True)
        self._num_runs, self._finds = 0, dict[str, str]()
        self._start = time.process_time()

    def run(self) -> None:
        """Fuzz; the process ends when a limit is reached."""
        seeds = self._folder / "seeds"
        seeds.mkdir()
        for number, seed in enumerate(self._reader.seeds):
            (seeds / str(number)).write_bytes(seed)
        limit_memory(SPARE_MEMORY)
        signal.signal(signal.SIGPROF, raise_too_slow)
        words = [sys.argv[0], f"-seed={self._options.seed + 1}", "-rss_limit_mb=0", f"-artifact_prefix={self._folder}/"]
        words.append(f"-max_len={max(512, *(2 * len(seed) for seed in self._reader.seeds))}")
        atheris.Setup([*words, str(self._corpus), str(seeds)], self._try, custom_mutator=self._mutate)
        atheris.Fuzz()

    def _try(self, data: bytes) -> None:
        self._num_runs += 1
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            self._reader.read(data)
        except BaseException as error:
            self._record(data, error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - self._start
        if self._num_runs >= self._options.runs or seconds >= self._options.seconds:
            self._report(seconds)

    def _mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        has_file_number = self._reader.seeds[0][:1] == b"\0"
        head, body = (data[:1], data[1:]) if has_file_number else (b"", data)
        if rng.random() < 0.5 or not body:
            return bytes(atheris.Mutate(data, max_size))
        path = self._folder / f"mutated{self._reader.extension}"
        path.write_bytes(body)
        with contextlib.suppress(ValueError, MemoryError):  # no JSON any more
            mutate_file(rng, path)
        return (head + path.read_bytes())[:max_size]

    def _record(self, data: bytes, error: BaseException) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        name = f"{type(error).__name__} at {where.filename}:{where.lineno}"
        if name not in self._finds:
            self._finds[name] = str(error)[:300]
            path = self._corpus / f"find-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            path.write_bytes(data)
            traceback.print_exception(error, limit=-12)
            print(f"saved as {path}", file=sys.stderr)

    def _report(self, seconds: float) -> None:
        result: dict[str, Any] = {
            "reader": self._options.reader,
            "executions": self._num_runs,
            "seconds": round(seconds),
            "seeds": len(self._reader.seeds),
            "new inputs": sum(not path.name.startswith("find-") for path in self._corpus.iterdir()),
            "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "finds": self._finds,
        }
        print(json.dumps(result, indent=1), flush=True)
        os._exit(bool(self._finds))  # libFuzzer would go on


def raise_too_slow(*_: object) -> None:
    """Interrupt a reader."""
    raise TooSlowError


def main() -> None:
    """Fuzz the reader that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--runs", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus")
    with tempfile.TemporaryDirectory() as folder:
        Fuzzer(parser.parse_args(), Path(folder)).run()


if __name__ == "__main__":
    main()
