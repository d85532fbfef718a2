"""What all tests share; being here, it puts the repository's root on the path, for `from tests.tiny import ...`."""

import os
import shutil
import tempfile

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long`, too: proofs that take minutes")
    parser.addoption("--scenes", type=int, default=20_000, help="images of the long proof on a cluster")
    parser.addoption("--memory_record", help="file for the memory of the long proof on a cluster over time")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["FLORENCE2_CACHE"] = tempfile.mkdtemp(prefix="florence2-cache-")
    config.addinivalue_line("markers", "long: a proof that takes minutes; it runs with `--long` alone")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ.pop("FLORENCE2_CACHE"), ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a proof that takes minutes: pass `--long`"))
