"""The page in a real browser: nothing that it complains of, and plots that can be seen, on a screen and on a phone."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.variants import LOOKS

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")


def shown(page: Path, width: int, folder: Path) -> tuple[np.ndarray, list[str]]:
    """Pixels [height, width, 3] of the page's first 6,000 pixels, and what the browser said of it."""
    picture = folder / f"{width}.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={folder / 'profile'}"]
    command += ["--hide-scrollbars", "--enable-logging=stderr", f"--window-size={width},6000"]
    command += [f"--screenshot={picture}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Content Security Policy" in line]
    return np.asarray(Image.open(picture).convert("RGB")), complaints


def pixels_of(picture: np.ndarray, color: str) -> int:
    channels = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(picture.astype(int) - channels).max(axis=2) < 12).sum())


@pytest.mark.parametrize("width", [1200, 500])
def test_plots_can_be_seen_and_nothing_is_complained_of(reported, width: int, tmp_path: Path) -> None:
    picture, complaints = shown(reported.folder / "report" / "report.html", width, tmp_path)
    assert complaints == []
    assert picture.shape[1] == width
    for variant in ("rope", "yarn", "drope", "control"):
        assert pixels_of(picture, LOOKS[variant].color) > 100, f"the line of {variant}"
    assert len(np.unique(picture[-300:].reshape(-1, 3), axis=0)) > 3, "the page goes on to the end of the picture"
