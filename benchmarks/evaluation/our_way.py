"""One of the ways: the evaluation stage on needle samples that are there; called in a process of its own."""

import json
import sys
from pathlib import Path

from eval import run as evaluation
from eval.config import EvaluationConfig
from eval.models import Models


def main() -> None:
    given = json.loads(sys.argv[1])
    source = Path(given["source"])
    models = Models(source=source, drope=None, control=None, tokenizer=source, validation=(Path(given["validation"]),))
    evaluation.run(EvaluationConfig(**given["config"]), models=models, out_dir=Path(given["out"]))


if __name__ == "__main__":
    main()
