"""One training process: `torchrun ... -m pipeline.recalibration.worker JOB`, a Job as JSON."""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from model_surgery.megatron.cpu import forgo_compiler_if_no_gpu
from pipeline.errors import BAD_INPUT
from pipeline.launch.processes import die_with_parent


@record
def main() -> None:
    die_with_parent()
    from pipeline.recalibration.job import End, Job

    job = Job.model_validate_json(sys.argv[1])
    if job.config.layers != "compiled":
        forgo_compiler_if_no_gpu()
    if job.config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # or kernels are chosen by their timing
    from pipeline.recalibration.loop import train
    from pipeline.recalibration.parallel import start_processes

    logging.getLogger().setLevel(logging.ERROR)
    try:
        start_processes(job)
        end = train(job)
    except BAD_INPUT as error:
        End(reason="refused", step=0, message=str(error)).save(job.out_dir)
        sys.exit(2)
    if os.environ["RANK"] == "0":
        end.save(job.out_dir)


if __name__ == "__main__":
    main()
