"""`florence2 doctor MODEL --against-published`: compares a checkpoint with published facts, row by row.

Files are compared by size and hash, answers token by token in float32: those of transformers' `generate` on the loaded
model, and those of the engine.
"""

from __future__ import annotations

import io
import platform
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

import florence2
from florence2.apps.doctor.check_path import describe_files, model_folder
from florence2.apps.doctor.machine import describe_versions
from florence2.apps.doctor.published_facts import (
    PUBLISHED,
    PublishedExample,
    PublishedFacts,
    PublishedFile,
    PublishedImage,
    PublishedModel,
    sha256_of,
)
from florence2.config import DoctorSettings
from florence2.errors import DatasetError, OptionError

EQUAL, DIFFERENT, NOT_COMPARED = "equal", "different", "not compared"
MAX_IMAGE_BYTES = 50 * 2**20
_EXTRA_TOKENS = 2  # bos and eos, which `GenerationConfig.max_length` does not count


@dataclass(frozen=True)
class Comparison:
    """One row: what is compared, what is published, what was found, and the verdict."""

    what: str
    published: str
    found: str
    verdict: str

    @classmethod
    def of_values(cls, what: str, published: Any, found: Any) -> Comparison:
        """Compare two values."""
        return cls(what, str(published), str(found), EQUAL if published == found else DIFFERENT)


def compare_published(settings: DoctorSettings) -> dict[str, Any]:
    """Compare a model with what is published about it, and return all rows as one JSON object."""
    if settings.path is None:
        raise OptionError("`--against-published` compares a model", "pass one, such as `microsoft/Florence-2-base`")
    facts = PublishedFacts.read(Path(settings.expected) if settings.expected else PUBLISHED)
    path, revision = settings.path, settings.revision
    if path in facts.models and revision is None:
        revision = facts.models[path].revision
    model, processor = florence2.load(path, dtype="float32", revision=revision)
    folder = model_folder(path, revision)
    published = facts.find(path, folder)
    images = _open_images(facts, published, settings)
    rows = [*_compare_files(folder, published), *_compare_answers(published, images, model, processor)]
    return {
        "model": path,
        "published": published.name,
        "revision": revision,
        "device": str(model.device),
        "dtype": "float32",
        "platform": platform.platform(),
        "versions": describe_versions(),
        "sources": dict(facts.sources),
        "rows": [asdict(row) for row in rows],
        "counts": {
            verdict: sum(row.verdict == verdict for row in rows) for verdict in (EQUAL, DIFFERENT, NOT_COMPARED)
        },
    }


def comparison_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as Markdown, to paste into an issue."""
    yield f"`{report['model']}` against what is published about `{report['published']}` at `{report['revision']}`"
    yield ""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield f"{versions}; {report['platform']}; {report['dtype']} on `{report['device']}`"
    yield ""
    yield "| | published | found | |"
    yield "|---|---|---|---|"
    for row in report["rows"]:
        yield "| {what} | {published} | {found} | {verdict} |".format(**{k: _cell(v) for k, v in row.items()})
    yield ""
    yield ", ".join(f"{number} {verdict}" for verdict, number in report["counts"].items())
    for name, source in report["sources"].items():
        yield f"- {name}: {source}"


def _compare_files(folder: Path | None, published: PublishedModel) -> Iterator[Comparison]:
    if folder is None:
        raise OptionError(f"the files of `{published.name}` are not on this machine", "pass their folder")
    for name, facts in published.files.items():
        yield _compare_file(folder / name, facts)
    weights = [each for each in describe_files(folder)["weights"] if "tensors" in each]
    if published.tensors is not None and weights:
        yield Comparison.of_values("tensors", published.tensors, sum(each["tensors"] for each in weights))


def _compare_file(path: Path, facts: PublishedFile) -> Comparison:
    if not path.is_file():
        return Comparison(path.name, _describe(facts), "not downloaded", NOT_COMPARED)
    digest = sha256_of(path) if facts.sha256 else None
    found = PublishedFile(path.stat().st_size if facts.bytes is not None else None, digest)
    return Comparison(path.name, _describe(facts), _describe(found), EQUAL if found == facts else DIFFERENT)


def _describe(facts: PublishedFile) -> str:
    size = f"{facts.bytes:,} bytes" if facts.bytes is not None else "size not known"
    return f"{size}, {facts.sha256[:12]}" if facts.sha256 else f"{size}, hash not known"


def _open_images(facts: PublishedFacts, published: PublishedModel, settings: DoctorSettings) -> dict[str, Image.Image]:
    """Open the images of the examples: those that the user passes, or downloads."""
    if settings.images is None and not settings.fetch_images:
        return {}
    names = sorted({example.image for example in published.examples})
    return {name: _open_image(facts.images[name], settings) for name in names}


def _open_image(image: PublishedImage, settings: DoctorSettings) -> Image.Image:
    source: Path | io.BytesIO
    if settings.images is not None:
        source = Path(settings.images).expanduser() / image.file
    elif image.url:
        source = io.BytesIO(_download(image.url))
    else:
        raise OptionError(f"`{image.file}` is not published at a URL", "pass its folder to `--images`")
    try:
        with Image.open(source) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        hint = f"save it from {image.url}" if image.url else "pass the folder that holds it to `--images`"
        raise DatasetError(f"the image {image.file} cannot be read: {error}", hint) from error


def _download(url: str) -> bytes:
    if not url.startswith("https://"):
        raise OptionError(f"{url} is not an https URL", "pass the images with `--images`")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return bytes(response.read(MAX_IMAGE_BYTES))
    except OSError as error:
        raise DatasetError(f"{url} cannot be downloaded: {error}", "pass the images with `--images`") from error


def _compare_answers(
    published: PublishedModel, images: Mapping[str, Image.Image], model: Any, processor: Any
) -> Iterator[Comparison]:
    examples = published.examples
    if not examples:
        yield Comparison("answers", "none that could be found", "", NOT_COMPARED)
    elif not images:
        reason = "no images: pass `--images` or `--fetch_images`"
        yield Comparison("answers", f"{len(examples)} examples", reason, NOT_COMPARED)
    else:
        with florence2.Engine(model, processor, _engine_config(examples)) as engine:
            for example in examples:
                yield from _compare_answer(example, images[example.image], engine, processor)


def _engine_config(examples: tuple[PublishedExample, ...]) -> florence2.EngineConfig:
    """Return the config of an engine that fits all examples, with pixels equal to those of transformers."""
    longest = max(example.max_new_tokens for example in examples)
    beams = max(example.num_beams for example in examples)
    generation = florence2.GenerationConfig(max_length=longest, num_beams=beams)
    return florence2.EngineConfig(generation=generation, full_decode=True)


@torch.inference_mode()
def _compare_answer(
    example: PublishedExample, image: Image.Image, engine: florence2.Engine, processor: Any
) -> Iterator[Comparison]:
    """Compare the tokens of `generate`, then the text of the engine with that of the published tokens."""
    options: dict[str, Any] = {"num_beams": example.num_beams, "no_repeat_ngram_size": example.no_repeat_ngram_size}
    name = f"{example.image}, `{example.task}`{example.input}, {example.num_beams} beams"
    inputs = processor(text=example.task + example.input, images=image, return_tensors="pt").to(engine.device)
    ids = engine.model.generate(**inputs, max_new_tokens=example.max_new_tokens, do_sample=False, **options)
    expected = engine.preprocessor.decode(example.token_ids)
    found = engine.preprocessor.decode(ids[0])
    verdict = EQUAL if tuple(ids[0].tolist()) == example.token_ids else DIFFERENT
    yield Comparison(f"{name}: tokens of `generate`", expected, found, verdict)
    sample = florence2.Sample(example.image, image, example.task, example.input)
    length = max(1, example.max_new_tokens - _EXTRA_TOKENS)
    prediction = next(engine.run([sample], florence2.GenerationConfig(max_length=length, **options)))
    yield Comparison.of_values(f"{name}: text of the engine", expected, prediction.error or prediction.text)


def _cell(text: str) -> str:
    """Write a text as one cell of a Markdown table, shortened in its middle; location tokens as code."""
    flat = " ".join(text.split()).replace("|", "\\|")
    short = flat if len(flat) <= 160 else f"{flat[:100]} ... {flat[-50:]}"
    return short.replace("<", "&lt;") if "`" not in short else short
