"""A training process of this project that leaves its peak memory: `python -m benchmarks.recalibration.our_way JOB`."""

import sys

from benchmarks.recalibration.job import write_peak
from pipeline.recalibration.job import Job
from pipeline.recalibration.worker import main

if __name__ == "__main__":
    main()
    write_peak(Job.model_validate_json(sys.argv[1]).out_dir)
