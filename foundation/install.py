"""How a user installs an optional part of the project, worded once."""

from pathlib import Path

DISTRIBUTION = "drope-recalibration"
"""The project's name on a package index. The name `drope` belongs to another project there."""

_ROOT = Path(__file__).resolve().parents[1]


def install_hint(extra: str) -> str:
    """The command that installs an optional extra, as it works where this code runs: a checkout or an installation."""
    if (_ROOT / "setup.py").is_file():
        return f".venv/bin/pip install -c constraints.txt -e '.[{extra}]' (in {_ROOT})"
    return f"pip install '{DISTRIBUTION}[{extra}]'"
