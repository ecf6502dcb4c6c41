"""English text that every machine has: the docstrings of installed packages and of the standard library."""

import ast
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

STANDARD_LIBRARY = "python"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_NOT_READ = {"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "lib2to3"}


def docstrings(packages: Iterable[str], least: int = 300) -> Iterator[str]:
    """Docstrings of at least `least` characters, each once, in the order of files and lines.

    packages: names of installed packages; "python" is the standard library.

    Raises: ModuleNotFoundError if a package is not installed.
    """
    seen: set[str] = set()
    for package in packages:
        for path in source_files(package):
            for text in docstrings_of(path.read_text(encoding="utf-8", errors="replace")):
                if len(text) >= least and text not in seen:
                    seen.add(text)
                    yield text


def source_files(package: str) -> list[Path]:
    """The package's Python files without its tests, sorted."""
    root = _folder(package)
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(paths) if not _NOT_READ & set(path.parts)]


def docstrings_of(source: str) -> Iterator[str]:
    """The docstrings of a module's text, without their indentation; none of a text that is not Python."""
    try:
        with warnings.catch_warnings():  # of escapes in other people's strings
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def _folder(package: str) -> Path:
    if package == STANDARD_LIBRARY:
        return Path(ast.__file__).parent
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed in {sys.prefix}", name=package)
    return Path(spec.origin).parent
