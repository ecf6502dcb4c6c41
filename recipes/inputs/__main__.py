"""Writes what recipes/smollm2-135m.yaml reads: the model, text to train on and other text to judge by.

python -m recipes.inputs FOLDER (make smollm2). A folder that is there already is left as it is.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from foundation.files import publish_folder, remove_leftovers, temporary_path
from recipes.inputs.docstrings import docstrings
from recipes.inputs.smollm2 import write_smollm2

TRAINING = ("scipy", "sklearn", "pandas", "networkx", "matplotlib")
VALIDATION = ("numpy",)
CONTEXT = 512
"""What the recipe trains at and calls 1x. The model itself was trained at up to 8,192 tokens, too long for a laptop."""


def write_inputs(folder: Path) -> None:
    """model/, train.jsonl and validation.jsonl, all or none of them."""
    if folder.exists():
        print(f"{folder} is there already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    temporary = temporary_path(folder)
    write_smollm2(temporary / "model", context=CONTEXT)
    for name, packages in (("train", TRAINING), ("validation", VALIDATION)):
        write_documents(temporary / f"{name}.jsonl", docstrings(packages))
    publish_folder(temporary, folder)
    print(f"{folder}: model, train.jsonl and validation.jsonl are ready")


def write_documents(path: Path, texts: Iterable[str]) -> None:
    """One JSON object with the field `text` on each line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m recipes.inputs FOLDER")
    try:
        write_inputs(Path(sys.argv[1]))
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
