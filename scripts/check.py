"""Everything a change must pass: format, lint, types, spelling, site, tests, the examples of the docs. CI runs it."""

import os
import subprocess
import sys
import time

CHECKS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "spelling": ["codespell_lib", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "examples"],
    "docs": ["mkdocs", "build", "--strict"],
    "tests": ["pytest", "-n", "auto", "--dist", "worksteal", "--durations", "20"],
}
# Processes of one thread are done sooner than one process of several.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"}
FIXES = {"format": ["ruff", "format", "."], "lint": ["ruff", "check", "--fix", "."]}


def main(arguments: list[str]) -> int:
    """Run all checks, name the failed ones, and return how many there were."""
    checks = CHECKS | (FIXES if "--fix" in arguments else {})
    failed = []
    for name, command in checks.items():
        start = time.monotonic()
        print(f"== {name}: {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *command], env=ENVIRONMENT | os.environ, check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
