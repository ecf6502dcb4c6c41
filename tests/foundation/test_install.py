"""The hint names this project's distribution, and works in a checkout."""

from pathlib import Path

import pytest

from foundation import install


def test_in_a_checkout() -> None:
    assert install.install_hint("wandb").startswith(".venv/bin/pip install -c constraints.txt -e '.[wandb]'")


def test_in_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_ROOT", tmp_path)
    assert install.install_hint("wandb") == "pip install 'drope-recalibration[wandb]'"
