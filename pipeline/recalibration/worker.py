"""One training process: `torchrun ... -m pipeline.recalibration.worker JOB.json`."""

import logging
import sys
from pathlib import Path

from pipeline.processes import die_with_parent


def main() -> None:
    die_with_parent()
    from pipeline.recalibration.job import Job
    from pipeline.recalibration.loop import train
    from pipeline.recalibration.parallel import start_processes

    logging.getLogger().setLevel(logging.ERROR)
    job = Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    device = start_processes(job_tensor_parallel(job.layout))
    train(job, device)


def job_tensor_parallel(layout: Path) -> int:
    """TP degree of the layout that the job trains."""
    from model_surgery.layout import Layout

    return Layout.load(layout).tensor_parallel


if __name__ == "__main__":
    main()
