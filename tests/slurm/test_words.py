"""The package serves jobs of any kind: its code has no word for what this project's jobs do."""

import re
from pathlib import Path

import slurm

WORDS = r"drope|recipe|stages?|trainings?|recalibration|surgery|evaluation|checkpoints?|ranks?|data-parallel"


def test_no_word_of_the_work_is_in_the_package() -> None:
    lines = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted(Path(slurm.__file__).parent.glob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(rf"\b({WORDS})\b", line, re.IGNORECASE)
    ]
    assert lines == []
