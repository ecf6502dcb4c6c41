"""The list of skips: what it names may skip, all else fails the run; in one process and in two."""

import pytest

pytest_plugins = ("pytester",)

CONFTEST = """
from tests import skip_list

def pytest_addoption(parser):
    skip_list.add_option(parser)

def pytest_configure(config):
    skip_list.register(config)
"""
TESTS = """
import pytest

@pytest.mark.parametrize("name", ["a", "b"])
def test_of_data(name):
    pytest.skip(f"no {name}")

@pytest.mark.skipif(True, reason="no browser")
def test_of_a_browser():
    pass

@pytest.mark.xfail
def test_that_is_known_to_fail():
    assert False

def test_that_passes():
    pass
"""
OF_DATA, OF_A_BROWSER = "test_it.py::test_of_data[*]: no * | elsewhere\n", "*: no browser | not everywhere\n"
ALL = OF_DATA + OF_A_BROWSER


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with tests that skip, whose conftest is wired as ours."""
    monkeypatch.delenv("CI", raising=False)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)
    return pytester


def run(project: pytest.Pytester, listed: str, *options: str) -> pytest.RunResult:
    (project.path / "skips.txt").write_text(listed)
    return project.runpytest("--check-skips", "--expected-skips", "skips.txt", "-p", "no:cacheprovider", *options)


def test_what_is_listed_may_skip(project: pytest.Pytester) -> None:
    result = run(project, f"# a comment\n\n{ALL}")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, skipped=3, xfailed=1)
    result.stdout.no_fnmatch_line("*not listed*")


def test_a_list_may_name_more_than_skips(project: pytest.Pytester) -> None:
    assert run(project, f"{ALL}test_it.py::test_that_passes* | elsewhere\n").ret == pytest.ExitCode.OK


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two"])
def test_what_is_not_listed_fails_the_run_and_is_named(project: pytest.Pytester, options: tuple[str, ...]) -> None:
    result = run(project, "test_it.py::test_of_data[a]: no a | one of them\n", *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, skipped=3, xfailed=1)
    lines = ["test_it.py::test_of_a_browser: no browser", "test_it.py::test_of_data?b?: no b", "2 skipped and not*"]
    result.stdout.fnmatch_lines(lines)
    result.stdout.no_fnmatch_line("test_it.py::test_of_data?a?: no a")


def test_a_whole_file_that_skips_is_a_skip(project: pytest.Pytester) -> None:
    project.makepyfile(test_other="import pytest\npytest.importorskip('a_package_that_nobody_has')\n")
    result = run(project, ALL)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["test_other.py: *a_package_that_nobody_has*", "1 skipped and not*"])


def test_a_failure_stays_a_failure(project: pytest.Pytester) -> None:
    project.makepyfile(test_other="def test_that_fails():\n    assert False\n")
    assert run(project, ALL).ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    "pattern", ["test_it.py::test_of_data", "test_it.py::test_of_data[[ab]]: *", "*: no", "*::test_of_data[*]: no a"]
)
def test_a_pattern_is_of_the_whole_line(project: pytest.Pytester, pattern: str) -> None:
    """Brackets are brackets; a beginning, or another reason, is not enough."""
    assert run(project, f"{OF_A_BROWSER}{pattern} | a").ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(("value", "code"), [("true", 1), ("", 0)])
def test_the_project_s_own_list_is_used_where_ci_is_set(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, value: str, code: int
) -> None:
    monkeypatch.setenv("CI", value)
    result = project.runpytest("-p", "no:cacheprovider")
    assert result.ret == code
    if code:
        result.stdout.fnmatch_lines(["3 skipped and not listed*", "*with a reason in *tests/expected-skips.txt"])


@pytest.mark.parametrize("line", ["test_it.py::test_of_data", "test_it.py::test_of_data |", "a | "])
def test_a_line_without_a_reason_is_refused(project: pytest.Pytester, line: str) -> None:
    result = run(project, f"{ALL}{line}\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*skips.txt:3: give a pattern and a reason*"])


def test_a_list_that_is_not_there_is_refused(project: pytest.Pytester) -> None:
    result = project.runpytest("--check-skips", "--expected-skips", "nowhere.txt", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*nowhere.txt: No such file or directory*"])
