"""A rank that meets the others: `torchrun ... -m tests.pipeline.cluster.meeting_worker OUT HOW`; it leaves OUT/RANK."""

import os
import sys
import time
from pathlib import Path

import torch.distributed
from torch.distributed.elastic.multiprocessing.errors import record

from pipeline.launch.processes import die_with_parent


@record
def main() -> None:
    die_with_parent()
    out, how = Path(sys.argv[1]), sys.argv[2]
    torch.distributed.init_process_group("gloo")
    ones = torch.ones(1)
    torch.distributed.all_reduce(ones)
    rank = os.environ["RANK"]
    (out / rank).write_text(f"{os.environ['LOCAL_RANK']} {os.environ['LOCAL_WORLD_SIZE']} {int(ones)}")
    if how == "raises" and rank == "2":
        raise ValueError("there is something wrong here")
    if how != "well":
        time.sleep(1)
        torch.distributed.barrier()
        time.sleep(60 if how == "dies" else 0)
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
