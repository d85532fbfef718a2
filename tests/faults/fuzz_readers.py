"""What `tests.faults.fuzz` tries: for each reader its seeds, and a function that reads bytes and checks the result."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from florence2.errors import UserError
from florence2.model.answer import Answer
from florence2.model.locations import decode, encode
from florence2.model.tasks import TASKS, InputType, OutputType, split_prompt
from tests.faults.mutate_datasets import READERS as DATASET_READERS
from tests.faults.mutate_datasets import SPECS, annotation_files, write_tables

TESTS = Path(__file__).parents[1]
LEGACY = TESTS / "fixtures" / "tiny-legacy"
SIZE = (640, 480)
# The readers by which this project describes its fuzzing; any other folder of the corpus is a reader, too.
DATASETS = {
    "jsonl": "table_jsonl",
    "csv": "table_csv",
    "json": "kohya",
    "coco": "coco_datumaro",
    "yolo": "yolo_ultralytics",
    "voc": "voc_supervision",
    "labelme": "labelme",
    "tar": "webdataset",
}
TEXTS = (
    "<CAPTION_TO_PHRASE_GROUNDING> a green car",
    "<OD>",
    "cat<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>dog<loc_9><loc_10><loc_11><loc_12>",
    "cat<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><sep><loc_7><loc_8></poly>",
    "</s><s>word<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>",
    "<REGION_TO_CATEGORY><loc_1><loc_2><loc_3><loc_4>",
)


@dataclass(frozen=True)
class Reader:
    """One reader: its seeds, the extension by which `mutate_file` changes them, and the function that tries bytes."""

    seeds: list[bytes]
    extension: str
    read: Callable[[bytes], None]


def make_reader(name: str, folder: Path) -> Reader:
    """Return a reader by its name; it writes what it reads into a folder."""
    return OTHERS[name](folder) if name in OTHERS else dataset_reader(DATASETS.get(name, name), folder)


def dataset_reader(name: str, folder: Path) -> Reader:
    """Read a dataset of the corpus; the first byte names the file that the others replace."""
    corpus = Path(shutil.copytree(TESTS / "corpus", folder / "corpus"))
    write_tables(corpus)
    dataset = corpus / name
    contents = [(path, path.read_bytes()) for path in annotation_files(dataset)]

    def read(data: bytes) -> None:
        path, original = contents[data[0] % len(contents) if data else 0]
        path.write_bytes(data[1:])
        try:
            for read_dataset in DATASET_READERS:
                in_one_line(partial(read_dataset, dataset / SPECS.get(name, "")))
        finally:
            path.write_bytes(original)

    seeds = [bytes([number]) + content for number, (_, content) in enumerate(contents)]
    return Reader(seeds, contents[0][0].suffix, read)


def in_one_line(read: Callable[[], Any]) -> None:
    """Call a reader; a UserError of one line is as it should be."""
    try:
        read()
    except UserError as error:
        check_is_one_line(error)


def check_is_one_line(error: UserError) -> None:
    """Check that an error is two lines on the command line."""
    assert "\n" not in error.what + error.hint, error.what[:200]


def text_reader(check: Callable[[str], None], _: Path) -> Reader:
    """Try a text on a function."""
    return Reader([text.encode() for text in TEXTS], ".txt", lambda data: check(data.decode("utf-8", "replace")))


def check_locations(text: str) -> None:
    """Decode a text as each task: numbers are inside the image, and what is encoded again is decoded alike."""
    for task in TASKS:
        answer = decode(task, text, SIZE)
        rings = [ring for item in answer for ring in item.rings]
        assert all(0 <= side <= SIZE[at % 2] for ring in rings for at, side in enumerate(ring)), (task.token, rings)
        json.dumps(answer.to_dict(), allow_nan=False)
        again = encode(task, answer, SIZE)
        assert encode(task, decode(task, again, SIZE), SIZE) == again, (task.token, again)


def prompt_reader(_: Path) -> Reader:
    """Split a prompt and tokenize it: words are never coordinates, and literal text is decoded as it was."""
    from florence2.model.processing import Preprocessor
    from tests.tiny import tiny_processor

    processor = Preprocessor.from_processor(tiny_processor())
    locations, layout = set(processor.location_ids), set(processor._layout_ids())

    def check(text: str) -> None:
        task, words = split_prompt(text)
        try:
            ids = processor.prompt_ids(task, words)[processor.num_image_tokens :]
        except UserError as error:
            check_is_one_line(error)
            return
        assert not layout & set(ids[1:-1])
        assert task.input_type is not InputType.WORDS or not locations & set(ids)
        assert processor.decode(processor.target_ids(text, literal=True)) == text.strip()

    return text_reader(check, _)


def answer_reader(_: Path) -> Reader:
    """Read an answer of each kind from JSON, and write it."""

    def read(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        for output_type in OutputType if isinstance(value, dict) else ():
            try:
                answer = Answer.from_dict(value, output_type)
            except UserError as error:
                check_is_one_line(error)
                continue
            assert all(isfinite(side) for item in answer for ring in item.rings for side in ring)
            assert Answer.from_dict(answer.to_dict(), output_type).to_dict() == answer.to_dict()

    answers = (decode(task, text, SIZE).to_dict() for task in TASKS for text in TEXTS)
    return Reader([json.dumps(answer).encode() for answer in answers if answer], ".json", read)


def checkpoint_reader(file: str, folder: Path) -> Reader:
    """Replace a file of a checkpoint, and load it for prediction and as transformers' class."""

    from tests.tiny import save_tiny

    native = save_tiny(folder / "native")
    legacy = Path(shutil.copytree(LEGACY, folder / "legacy"))
    folders = [path for path in (native, legacy) if (path / file).is_file()]
    originals = [(path, (path / file).read_bytes()) for path in folders]

    def read(data: bytes) -> None:
        path, original = originals[data[0] % len(originals) if data else 0]
        (path / file).write_bytes(data[1:])
        try:
            load_both(path)
        finally:
            (path / file).write_bytes(original)

    return Reader([bytes([number]) + content for number, (_, content) in enumerate(originals)], ".json", read)


def load_both(path: Path, base: Path | None = None) -> None:
    """Load a model for prediction, and as transformers' class."""
    import torch

    from florence2.model.inference.load_inference_model import load_inference_model
    from florence2.model.load import load

    options = {"dtype": torch.float32, "device": torch.device("cpu"), "offline": True}
    in_one_line(lambda: load_inference_model(path, path.name, base=base and str(base), **options))
    in_one_line(lambda: load(path, base=base, **options))


def adapter_reader(folder: Path) -> Reader:
    """Replace the config of an adapter, and load it with its base."""
    adapter = Path(shutil.copytree(LEGACY / "adapter", folder / "adapter"))
    config = adapter / "adapter_config.json"
    seed = config.read_bytes()

    def read(data: bytes) -> None:
        config.write_bytes(data)
        load_both(adapter, LEGACY)

    return Reader([seed], ".json", read)


def settings_reader(folder: Path) -> Reader:
    """Read a file of `--config`, of the command `predict`."""
    from florence2.cli.config_file import read_config
    from florence2.config import PredictSettings

    path = folder / "settings.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        in_one_line(lambda: list(read_config(path, PredictSettings)))

    return Reader([b"task: od\nbatch_size: 4\ngeneration_args: [num_beams=3]\n", b"{a: &a [1, *a]}"], ".yaml", read)


OTHERS: dict[str, Callable[[Path], Reader]] = {
    "locations": partial(text_reader, check_locations),
    "prompt": prompt_reader,
    "answer": answer_reader,
    "config": partial(checkpoint_reader, "config.json"),
    "generation_config": partial(checkpoint_reader, "generation_config.json"),
    "processor_config": partial(checkpoint_reader, "processor_config.json"),
    "tokenizer": partial(checkpoint_reader, "tokenizer_config.json"),
    "adapter": adapter_reader,
    "settings": settings_reader,
}


def reader_names() -> Iterator[str]:
    """Yield the names of the readers."""
    yield from (*DATASETS, *OTHERS)
