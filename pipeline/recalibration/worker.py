"""One training process: `torchrun ... -m pipeline.recalibration.worker SPEC`, a TrainingSpec as JSON."""

import faulthandler
import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from model_surgery.megatron.cpu import forgo_compiler_if_no_gpu
from pipeline.errors import BAD_INPUT
from pipeline.launch.processes import die_with_parent


@record
def main() -> None:
    faulthandler.enable()  # a rank that C++ ends (SIGABRT, SIGSEGV) says where it stood
    die_with_parent()
    from pipeline.recalibration.attempt import AttemptEnd, TrainingSpec

    spec = TrainingSpec.model_validate_json(sys.argv[1])
    if spec.config.layers != "compiled":
        forgo_compiler_if_no_gpu()
    if spec.config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # or kernels are chosen by their timing
    from pipeline.recalibration.loop import train
    from pipeline.recalibration.parallel import start_processes

    logging.getLogger().setLevel(logging.ERROR)
    try:
        start_processes(spec)
        end = train(spec)
    except BAD_INPUT as error:
        AttemptEnd(reason="refused", step=0, message=str(error)).save(spec.out_dir)
        sys.exit(2)
    if os.environ["RANK"] == "0":
        end.save(spec.out_dir)


if __name__ == "__main__":
    main()
