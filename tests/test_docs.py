"""What the docs show works: every shell and Python block runs on the bundled model, every help page is fresh.

The blocks of a page run in order in one folder that holds `photos/` (captioned), `pictures/` and `image.jpg`. A block
under a line `<!-- not run: why -->` is shown only.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import count, groupby
from pathlib import Path

import pytest

from florence2.cli.program import COMMANDS, main
from florence2.demo.dataset import make_dataset
from florence2.settings_io import setting_names
from scripts import gallery
from scripts.reference import PAGES as REFERENCE_PAGES
from scripts.reference import page

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TEXTS = [*PAGES, *ROOT.glob("[A-Z]*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
TEXTS = sorted({*TEXTS, *(ROOT / "src").rglob("*.md"), ROOT / "docs" / "llms.txt"})
BLOCK = re.compile(
    r"^(<!-- (?:not run|test command)[^\n]*-->\n)?```(bash|python)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
# What differs between machines and moments: numbers with a fraction, times, and the digest of a run.
VARYING = re.compile(r"\d+\.\d+(?:e-?\d+)?|\d+ s left|(?<=\"run_id\": \")[0-9a-f]+")
# The Python blocks that follow each other run in one process, which imports libraries once, each with names of its own.
END_OF_BLOCK = "end of the block\n"
PYTHON_BLOCKS = f"""
import sys
for number, code in enumerate(sys.argv[1:], 1):
    exec(compile(code, f"Python block {{number}}", "exec"), {{"__name__": "__main__"}})
    print({END_OF_BLOCK!r}, end="", flush=True)
"""

# What a stranger types for their own files and for weights of the hub, in terms of what a test has.
STAND_INS = {
    "microsoft/Florence-2-base-ft": "demo",
    "microsoft/Florence-2-large-ft": "demo",
    "/path/to/dataset": "photos",
    "/path/to/images": "pictures",
    "uv run ": "",
    "--log_with wandb": "--log_with tensorboard",
    "--epochs 60": "--epochs 2",
    " scripts/": f" {ROOT}/scripts/",
    "\npython ": f"\n{sys.executable} ",
}


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """Return language, code and shown output of the blocks that run."""
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [(language, code, shown) for comment, language, code, shown in found if not comment]


def check_shown(shown: str, code: str, printed: str) -> None:
    """Find the shown lines in the printed ones, in their order; a training of another length has other numbers."""
    is_shorter = "--epochs 60" in code  # and so it shows no steps
    lines = iter(mask(printed, every_number=is_shorter))
    for line in mask(shown, every_number=is_shorter):
        if is_shorter and line.startswith("step "):
            continue
        assert line == "..." or line in lines, f"not printed: {line}\n{printed}"


def mask(text: str, *, every_number: bool) -> list[str]:
    text = VARYING.sub("#", text)
    return (re.sub(r"[\d,]*\d", "#", text) if every_number else text).splitlines()


def stand_in(code: str) -> str:
    code = f"\n{code}"
    for theirs, ours in STAND_INS.items():
        code = code.replace(theirs, ours)
    return code


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_every_block_runs(path: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "photos", num_samples=8, seed=1)
    make_dataset(tmp_path / "pictures", num_samples=3, seed=2)
    image = next((tmp_path / "pictures").glob("*.[jp]*g"))
    (tmp_path / "image.jpg").write_bytes(image.read_bytes())
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    for language, group in groupby(blocks(path), key=lambda block: block[0]):
        codes, texts = zip(*((code, shown) for _, code, shown in group), strict=True)
        if language == "python":
            calls = [[sys.executable, "-c", PYTHON_BLOCKS, *codes]]
        else:
            calls = [["bash", "-euo", "pipefail", "-c", stand_in(code)] for code in codes]
        printed = []
        for words in calls:
            run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert run.returncode == 0, f"{path.name}:\n{codes}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
            printed += [output + run.stderr for output in run.stdout.removesuffix(END_OF_BLOCK).split(END_OF_BLOCK)]
        for code, shown, output in zip(codes, texts, printed, strict=True):
            check_shown(shown, code, output)


def test_commands_of_the_table_in_the_readme_are_valid(tmp_path: Path) -> None:
    rows = re.findall(r"^\|[^|]*\| `florence2 ([^`]+)` \| \[", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 10
    for number, row in enumerate(rows):
        written = tmp_path / f"{number}.yaml"
        assert main([*shlex.split(row), "--save_config", str(written)]) == 0, row
        assert written.read_text("utf-8")


@pytest.mark.parametrize("name", REFERENCE_PAGES)
def test_reference_pages_equal_the_flags(name: str) -> None:
    written = (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")
    assert written == page(name), "run `uv run python scripts/reference.py`"
    flags = [
        flag for key, command in COMMANDS.items() if key.split()[0] == name for flag in setting_names(command.settings)
    ]
    assert sorted(re.findall(r"^\| `--(\w+)`", written, re.MULTILINE)) == sorted(flags)


def test_gallery_is_what_the_bundled_model_answers() -> None:
    rows = {name: result.to_json() for name, result in gallery.answer_tasks().items()}
    assert gallery.PAGE.read_text(encoding="utf-8") == gallery.render(rows), "run `uv run python scripts/gallery.py`"
    assert {path.stem for path in gallery.IMAGES.iterdir()} == set(rows)


def without_code(path: Path) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "`code`", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub and the site give to the headings of a page."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+?)$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
        number = next(n for n in count() if (f"{anchor}-{n}" if n else anchor) not in found)
        found.add(f"{anchor}-{number}" if number else anchor)
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def dead_links(path: Path) -> Iterator[str]:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)[^)]*\)", without_code(path)):
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        if not page.exists():
            yield target
        elif anchor and page.suffix == ".md" and anchor not in anchors(page):
            yield f"{target}, a page that has {', '.join(sorted(anchors(page)))}"


def test_links_lead_to_files_and_headings_that_exist() -> None:
    dead = [f"{path.relative_to(ROOT)} links to {target}" for path in TEXTS for target in dead_links(path)]
    assert not dead, "\n".join(dead)


def test_the_link_checker_knows_the_anchors_of_github(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# A `--flag`, and [a link](b.md)\n## Twice\n## Twice\n```bash\n# no heading\n```\n", encoding="utf-8"
    )
    assert anchors(page) == {"a---flag-and-a-link", "twice", "twice-1"}
    page.write_text("# One\n[one](#one), [two](#two), [none](none.md#a), `[code](c.md)`\n", encoding="utf-8")
    anchors.cache_clear()
    assert list(dead_links(page)) == ["#two, a page that has one", "none.md#a"]
