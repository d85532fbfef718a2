"""The site has every page, its index for programs is fresh, and the page on installation equals pyproject.toml."""

import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

from mkdocs.config import load_config

import florence2
from florence2.cli.program import COMMANDS, main
from scripts import llms, site_hooks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_llms_txt_lists_every_page_and_is_fresh() -> None:
    written = (DOCS / "llms.txt").read_text(encoding="utf-8")
    assert written == llms.render(), "run `uv run python scripts/llms.py`"
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(re.findall(r"\]\((.*?\.md)\): .", written)) == pages


def test_every_page_is_in_the_navigation_once() -> None:
    pages = llms.nav_pages(load_config(str(ROOT / "mkdocs.yml"))["nav"])
    assert sorted(pages) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_extras_of_the_installation_page_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (DOCS / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", page, re.MULTILINE)
    packages = {
        extra: [re.split(r"[\[<>=]", requirement)[0] for requirement in requirements]
        for extra, requirements in project["optional-dependencies"].items()
    }
    [everything] = project["optional-dependencies"]["all"]
    assert everything == f"florence2[{','.join(extra for extra in packages if extra != 'all')}]"
    assert {extra: names.split(", ") for extra, names in rows} == packages | {"all": ["every extra above"]}
    versions = [name.split(" :: ")[-1] for name in project["classifiers"] if "Python :: 3." in name]
    assert f"Python {', '.join(versions[:-1])} or {versions[-1]}" in page


def test_links_out_of_the_docs_become_paths() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/a.md"))

    def on_page(markdown: str) -> str:
        return site_hooks.on_page_markdown(markdown, page=page)

    assert on_page("[`README.md`](../../README.md)") == "`README.md`"
    assert on_page("see [the code](../../src/florence2/api.py#a).") == "see the code (`src/florence2/api.py`)."
    inside = "[training](../training.md#lora), ![x](../images/demo.png), [b](b.md)"
    assert on_page(inside) == inside


def test_flags_are_marked_and_other_code_is_not() -> None:
    html = "<td><code>--task</code></td> <code>--task od</code> <code>-</code><pre><code>--task</code></pre>"
    marked = site_hooks.on_page_content(html)
    assert marked.count('<code class="flag">--task</code>') == 2
    assert "<code>--task od</code> <code>-</code>" in marked


def test_commands_of_the_readme_table_are_valid(tmp_path: Path) -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## The doors")[1].split("\n## ")[0]
    commands = [shlex.split(words) for words in re.findall(r"\| `florence2 (.+?)` \|", table)]
    assert {words[0] for words in commands} == {name.split()[0] for name in COMMANDS} - {"demo"}
    for number, words in enumerate(commands):
        path = tmp_path / f"{number}.yaml"
        assert main([*words, "--save_config", str(path)]) == 0, words
        assert path.exists()


def test_python_reference_has_every_public_name() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    modules = {name for name in documented if name in {"florence2.errors", "florence2.api"}}
    for name in florence2.__all__:
        module = florence2._MODULE_OF[name]
        assert module in modules or f"{module}.{name}" in documented, f"{module}.{name} is not on the page"
