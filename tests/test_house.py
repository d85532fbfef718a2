"""The plan of docs/architecture.md, held against the code."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from florence2 import settings_io as settings
from florence2.cli.program import COMMANDS
from florence2.config import PredictSettings, TrainSettings

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "florence2"
FILES = sorted(SOURCE.rglob("*.py"))
TOOLS = sorted((ROOT / "tools").rglob("*.py"))

# Higher rooms may import lower ones, and their own; never the other way.
LEVELS = {
    "errors": 0,
    "distributed": 0,
    "log": 1,
    "files": 1,
    "config": 2,
    "settings_io": 1,
    "system": 1,
    "devices": 1,
    "cuda_graphs": 1,
    "model": 3,
    "data": 4,
    "pipeline": 5,
    "training": 5,
    "engine": 5,
    "metrics": 5,
    "results": 6,
    "export": 6,
    "recipes": 7,
    "api": 8,
    "ray": 8,
    "datasets": 8,
    "florence2_model": 9,
    "demo": 9,
    "apps": 10,
    "cli": 11,
    "__main__": 12,
}
# A list of flags is as long as there are flags.
NO_LENGTH_CAP = {"config.py", "api.py"}
TORCHLESS = {
    "data",
    "errors",
    "config",
    "distributed",
    "log",
    "files",
    "system",
    "settings_io",
    "api",
    "cli",
    "__init__",
    "__main__",
}
FORBIDDEN_NAMES = {"utils", "common", "core", "base", "helpers", "types"}
# Words that once meant many things each; no identifier contains them.
BANNED_WORDS = set(
    "said asked wanted told whole given kept held drawn look looked seen places share shares "
    "picture pictures learner lesson lessons".split()
)
# Attributes that belong to transformers' trainer, which our trainer must set.
INHERITED_ATTRIBUTES = {"CheckpointTrainer.state", "Florence2Trainer._created_lr_scheduler"}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, *, lazy: bool = True) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


@pytest.mark.parametrize("path", [p for p in FILES if room(p) != "__init__"], ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_down(path: Path) -> None:
    here = LEVELS[room(path)]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "florence2" and len(parts) > 1 and parts[1] in LEVELS and parts[1] != room(path):
            assert LEVELS[parts[1]] < here, f"{path.name} imports {name}, which is not below it"


def test_the_package_imports_nothing_outside_the_wheel() -> None:
    for path in FILES:
        assert not {n.split(".")[0] for n in imports(path)} & {"tools", "tests", "benchmarks", "scripts"}, path


def test_data_and_the_door_know_no_torch() -> None:
    for path in FILES:
        if room(path) in TORCHLESS:
            assert not {n.split(".")[0] for n in imports(path, lazy=False)} & {"torch", "transformers", "peft"}, path


def test_rooms_below_the_recipes_know_no_settings_class() -> None:
    for path in FILES:
        if LEVELS["config"] < LEVELS.get(room(path), 0) < LEVELS["recipes"]:
            settings_classes = [name for name in imports(path) if name.split(".")[-1].endswith("Settings")]
            assert not settings_classes, f"{path.relative_to(SOURCE)} imports {settings_classes}"


def test_words_of_options_are_parsed_by_specs_alone() -> None:
    parsers = {
        name.split(":")[1] for path in FILES for name, _ in functions(path) if re.search(r":parse_\w+_args$", name)
    }
    assert parsers, "no such function: rename it here, too"
    for path in FILES:
        if LEVELS["config"] < LEVELS.get(room(path), 0) < LEVELS["recipes"]:
            assert not {name.split(".")[-1] for name in imports(path)} & parsers, path


def module_file(name: str) -> Path | None:
    """Return the file of a module of the package, or of the module that defines the name."""
    for parts in (name.split(".")[1:], name.split(".")[1:-1]):
        for path in (SOURCE.joinpath(*parts).with_suffix(".py"), SOURCE.joinpath(*parts, "__init__.py")):
            if parts and path.exists():
                return path
    return None


def reachable(path: Path) -> set[Path]:
    """Return all files of the package that a file imports, directly or through others."""
    files, todo = {path}, [path]
    while todo:
        imported = {module_file(name) for name in imports(todo.pop()) if name.startswith("florence2.")}
        todo += [file for file in imported if file and file not in files]
        files |= set(todo)
    return files


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in {"results", "metrics"}], ids=lambda p: p.stem)
def test_results_and_metrics_import_no_weights(path: Path) -> None:
    forbidden = {SOURCE / "model" / "load.py", *(p for p in FILES if room(p) in {"engine", "training"})}
    forbidden |= set((SOURCE / "model" / "adapter").rglob("*.py"))
    assert not reachable(path) & forbidden


def test_engine_imports_no_paths() -> None:
    for path in FILES:
        if room(path) == "engine":
            assert "pathlib.Path" not in set(imports(path)), path


@pytest.mark.parametrize("path", FILES + TOOLS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_small_named_and_explained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.name in NO_LENGTH_CAP or len(text.splitlines()) <= 260
    assert path.stem not in FORBIDDEN_NAMES
    assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is for"


def test_functions_are_short() -> None:
    lengths = dict(pair for path in FILES + TOOLS if path.name not in NO_LENGTH_CAP for pair in functions(path))
    longest = max(lengths, key=lambda name: lengths[name])
    assert lengths[longest] <= 60, f"{longest} has {lengths[longest]} lines"
    assert statistics.quantiles(lengths.values(), n=10)[8] <= 35
    assert statistics.median(lengths.values()) <= 12


def test_rooms_hold_at_most_eight_files_and_no_name_twice() -> None:
    names = [p.name for p in FILES + TOOLS if p.name != "__init__.py"]
    assert len(names) == len(set(names)) or not _twice(names), _twice(names)
    for folder in {p.parent for p in FILES + TOOLS} - {SOURCE}:
        modules = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(modules) <= 8, f"{folder.name} holds {len(modules)} files"


def _twice(names: list[str]) -> set[str]:
    """A recipe may be called like the room's verb elsewhere; nothing else may."""
    return {n for n in names if names.count(n) > 1 and not (SOURCE / "recipes" / n).exists()}


def defined_names(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the names that a file defines: classes, functions, parameters, variables, attributes and keywords."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def words_of(name: str) -> set[str]:
    """Split `snake_case` and `CamelCase` into lower-case words."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_identifiers_contain_no_banned_word() -> None:
    folders = ("src", "tests", "tools", "benchmarks", "scripts")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    banned = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in files
        for name, line in defined_names(path)
        if words_of(name) & BANNED_WORDS
    ]
    assert not banned, "\n".join(banned)


def test_no_two_classes_have_one_name() -> None:
    names = [
        node.name for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    assert {name for name in names if names.count(name) > 1} == set()


def attributes_outside_init(node: ast.ClassDef) -> set[str]:
    """Return the attributes of `self` that a class sets in other methods than `__init__` and does not declare."""
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    declared = {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }

    def stored(method: ast.AST) -> set[str]:
        return {
            each.attr
            for each in ast.walk(method)
            if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self"
        }

    made = declared | (stored(methods["__init__"]) if "__init__" in methods else set())
    return {f"{node.name}.{name}" for method in methods.values() for name in stored(method) - made}


@pytest.mark.parametrize("path", FILES + TOOLS, ids=lambda p: str(p.relative_to(ROOT)))
def test_objects_are_complete_when_made(path: Path) -> None:
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    outside = {name for node in classes for name in attributes_outside_init(node)}
    assert outside <= INHERITED_ATTRIBUTES


def test_the_flags_can_be_read_in_one_sitting() -> None:
    assert len(settings.setting_names(TrainSettings)) <= 56
    assert len(settings.setting_names(PredictSettings)) <= 36


def test_only_the_model_room_names_tokens() -> None:
    token = re.compile(r"^</?(?:[A-Z_]{2,}|loc_\d+|od|poly|sep|and|s|pad)>$")
    for path in FILES:
        if room(path) == "model":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not token.match(node.value), f"{path.name} line {node.lineno} names {node.value}"


def test_the_readme_shows_the_tree_as_it_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^  (\w+)/", text, flags=re.MULTILINE))
    assert documented == {p.name for p in SOURCE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}


@pytest.mark.parametrize("words", [["--help"], *([*name.split(), "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_no_torch(words: list[str]) -> None:
    code = f"""
import sys
from florence2.cli.program import main
try:
    main({words!r})
except SystemExit:
    pass
assert not {{"torch", "transformers", "datasets", "numpy"}} & set(sys.modules), "heavy imports"
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout


def test_dependencies_are_bounded() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    lists = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    requirements = [each for row in (*lists, *project["dependency-groups"].values()) for each in row]
    unbounded = [each for each in requirements if not re.search(r"<\d", each) and not each.startswith("florence2[")]
    assert not unbounded
