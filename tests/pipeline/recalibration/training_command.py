"""The training stage as a command of its own, with the exit codes of `drope`: `python -m ... JOB.json`."""

import sys
from pathlib import Path

from pipeline.errors import exit_code
from pipeline.launch.processes import die_with_parent
from pipeline.launch.signals import stopped_by_signals
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.run import run

if __name__ == "__main__":
    die_with_parent()
    spec = TrainingSpec.model_validate_json(Path(sys.argv[1]).read_text())
    folders = {"shards": spec.shards, "layout": spec.layout, "out_dir": spec.out_dir}
    try:
        with stopped_by_signals():
            run(spec.config, spec.position_embedding, tensor_parallel=spec.tensor_parallel, **folders)
    except Exception as error:
        if (code := exit_code(error)) is None:
            raise
        print(f"drope: {error}", file=sys.stderr)
        sys.exit(code)
