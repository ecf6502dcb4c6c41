"""A run fails when a test skips that tests/expected-skips.txt does not name: a skip is no proof, and it is green."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

EXPECTED_SKIPS = Path(__file__).with_name("expected-skips.txt")


@dataclass(frozen=True)
class ExpectedSkip:
    """Skips that may be. pattern: `node id: what the skip says`, where * stands for anything. reason: why they may."""

    pattern: str
    reason: str

    def covers(self, skip: str) -> bool:
        expression = ".*".join(map(re.escape, self.pattern.split("*")))
        return re.fullmatch(expression, skip, re.DOTALL) is not None


def read_expected_skips(path: Path) -> tuple[ExpectedSkip, ...]:
    """Lines of the form `pattern | reason`; those that start with # are comments.

    Raises: pytest.UsageError for a line without a reason, or if the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise pytest.UsageError(f"{path}: {error.strerror}") from None
    expected = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = (part.strip() for part in line.partition(" | "))
        if not reason:
            raise pytest.UsageError(f"{path}:{number}: give a pattern and a reason, with ' | ' between them")
        expected.append(ExpectedSkip(pattern, reason))
    return tuple(expected)


class SkipList:
    """Notes each test that skips, and fails the run at its end if one was not expected."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._expected = read_expected_skips(path)
        self._unexpected: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            skip = f"{report.nodeid}: {_reason(report)}"
            if not any(each.covers(skip) for each in self._expected):
                self._unexpected.add(skip)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._unexpected:
            return
        terminalreporter.section("skipped without being expected", red=True, bold=True)
        for skip in sorted(self._unexpected):
            terminalreporter.line(skip)
        terminalreporter.line(
            f"{len(self._unexpected)} skipped and not listed: give them what they lack, or write down"
        )
        terminalreporter.line(f"the line above with a reason in {self._path}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--check-skips", action="store_true", help="fail if a test skips unexpectedly; on where CI=true")
    parser.addoption(
        "--expected-skips", type=Path, metavar="FILE", default=EXPECTED_SKIPS, help="instead of %(default)s"
    )


def register(config: pytest.Config) -> None:
    """Watches the skips where asked to, or where CI=true; the processes of pytest-xdist leave it to their master."""
    asked = config.getoption("check_skips") or os.environ.get("CI") == "true"
    if asked and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipList(config.getoption("expected_skips")), "skip-list")
