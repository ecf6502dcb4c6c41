"""Two ranks of which the second fails while the first waits.

`torchrun ... -m tests.pipeline.launch.failing_worker HOW`
"""

import os
import signal
import sys

import torch
from torch.distributed.elastic.multiprocessing.errors import record


@record
def main() -> None:
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 1:
        if sys.argv[1] == "raises":
            raise ValueError("row 7 holds no token\nand more")
        if sys.argv[1] == "exits":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
