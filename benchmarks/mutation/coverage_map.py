"""Which tests run which lines, recorded once by pytest-cov."""

import os
import subprocess
import sys
from pathlib import Path

from coverage import CoverageData

_CONFIG = """[run]
source = {packages}
relative_files = true
"""


def record(project: Path, packages: tuple[str, ...], selection: str, data: Path) -> None:
    """Runs the tests chosen by the mark expression `selection` and notes per line which of them ran it.

    Raises: subprocess.CalledProcessError if a test fails: what fails already could notice nothing.
    """
    config = data.with_suffix(".ini")
    config.write_text(_CONFIG.format(packages=",".join(packages)), encoding="utf-8")
    options = [f"--cov-config={config}", "--cov", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", "-q", "--fork", "-n", "2", "-m", selection, *options]
    environment = os.environ | {"COVERAGE_FILE": str(data), "PYTHONPATH": str(project)}
    subprocess.run(command, cwd=project, env=environment, check=True)


class CoverageMap:
    """Tests by line, from a file that `record` has made."""

    def __init__(self, data: Path) -> None:
        self._data = CoverageData(str(data))
        self._data.read()

    def tests_of(self, path: Path, line: int) -> list[str]:
        """Node ids of the tests that ran a line of a file (relative to the project): the nearest to it, the shortest.

        Lines that run at import, or in a fixture alone, belong to no test.
        """
        contexts = self._data.contexts_by_lineno(str(path)).get(line, [])
        tests = {context.partition("|")[0] for context in contexts if context}
        near = [f"{'/'.join(('tests', *path.parts[:depth]))}/" for depth in range(1, len(path.parts))]
        return sorted(tests, key=lambda test: (-sum(map(test.startswith, near)), len(test), test))
