"""A training process of this project that leaves its peak memory: `python -m benchmarks.recalibration.our_way SPEC`."""

import sys

from benchmarks.recalibration.trainer_spec import write_peak
from pipeline.recalibration.attempt import TrainingSpec
from pipeline.recalibration.worker import main

if __name__ == "__main__":
    main()
    write_peak(TrainingSpec.model_validate_json(sys.argv[1]).out_dir)
