"""Small mistakes that could stand in a source file: a number, a comparison, a sign, a condition, a message."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}
_SIGNS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
}


@dataclass(frozen=True)
class Mutant:
    """One mistake: `before`, at `offset` characters from the start of `path`, becomes `after`."""

    path: Path
    line: int
    offset: int
    before: str
    after: str
    kind: str

    def applied(self, source: str) -> str:
        """The file's text with the mistake in it."""
        end = self.offset + len(self.before)
        assert source[self.offset : end] == self.before
        return source[: self.offset] + self.after + source[end:]

    def __str__(self) -> str:
        before, after = (" ".join(text.split())[:60] for text in (self.before, self.after))
        return f"{self.path}:{self.line} {self.kind}: {before!r} -> {after!r}"


def mutants_of(path: Path) -> list[Mutant]:
    """Every mistake that this module knows to make in a file, in the order of the file."""
    source = path.read_text(encoding="utf-8")
    place = _Place(path, source)
    return sorted(_mutants(ast.parse(source), place), key=lambda mutant: mutant.offset)


@dataclass(frozen=True)
class _Place:
    """Turns the positions of syntax nodes (line, bytes) into characters from the start of the file."""

    path: Path
    source: str

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self._offset(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._offset(node.end_lineno, node.end_col_offset)

    def _offset(self, line: int, column: int) -> int:
        lines = self.source.splitlines(keepends=True)
        characters = len(lines[line - 1].encode()[:column].decode())
        return sum(map(len, lines[: line - 1])) + characters

    def text(self, node: ast.expr) -> str:
        return self.source[self.start(node) : self.end(node)]

    def mutant(self, offset: int, before: str, after: str, kind: str) -> Mutant:
        return Mutant(self.path, self.source.count("\n", 0, offset) + 1, offset, before, after, kind)


def _mutants(node: ast.AST, place: _Place) -> Iterator[Mutant]:
    match node:
        case ast.Raise(exc=ast.Call(args=[message, *_])) if isinstance(message, ast.Constant | ast.JoinedStr):
            yield from _of_message(message, place)
            return
        case ast.AnnAssign(value=value):  # an annotation is no code
            if value is not None:
                yield from _mutants(value, place)
            return
        case ast.Compare(left=left, ops=[operation], comparators=[right]) if type(operation) in _COMPARISONS:
            yield from _of_operator(left, right, *_COMPARISONS[type(operation)], "comparison", place)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _SIGNS and not _is_text(left, right):
            yield from _of_operator(left, right, *_SIGNS[type(operation)], "arithmetic", place)
        case ast.BoolOp(op=operation, values=[left, right, *_]):
            words = ("and", "or") if isinstance(operation, ast.And) else ("or", "and")
            yield from _of_operator(left, right, *words, "condition", place)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            start = place.start(node)
            yield place.mutant(start, place.source[start : place.start(operand)], "", "condition")
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            text = place.text(node)
            yield place.mutant(place.start(node), text, f"({text} + 1)", "number")
        case ast.JoinedStr():
            return  # what is formatted for people, outside of errors
    for child in ast.iter_child_nodes(node):
        if not _is_annotation(node, child):
            yield from _mutants(child, place)


def _of_operator(
    left: ast.expr, right: ast.expr, before: str, after: str, kind: str, place: _Place
) -> Iterator[Mutant]:
    """The operator between two operands; brackets and line breaks may stand beside it."""
    start = place.end(left)
    gap = place.source[start : place.start(right)]
    if (position := gap.find(before)) >= 0:
        yield place.mutant(start + position, before, after, kind)


def _of_message(message: ast.expr, place: _Place) -> Iterator[Mutant]:
    """An error that says nothing, and one that leaves out a value."""
    text, start = place.text(message), place.start(message)
    yield place.mutant(start, text, '"mutated"', "message")
    for part in re.finditer(r"(?<!\{)\{[^{}\"]+\}(?!\})", text):
        yield place.mutant(start + part.start(), part[0], "?", "value in a message")


def _is_text(*operands: ast.expr) -> bool:
    return any(isinstance(each, ast.JoinedStr) or isinstance(getattr(each, "value", None), str) for each in operands)


def _is_annotation(parent: ast.AST, child: ast.AST) -> bool:
    """Whether a child node is a type, where a change would change nothing that runs."""
    return child is getattr(parent, "annotation", None) or child is getattr(parent, "returns", None)
