"""The training process, some global batches of which have a loss that is not a number: those in POISONED_BATCHES."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace

import torch

from pipeline.recalibration import loop, worker
from pipeline.recalibration.batches import Batch

if __name__ == "__main__":
    clean, poisoned = loop.micro_batches, json.loads(os.environ["POISONED_BATCHES"])

    def micro_batches(rows: object, number: int, *sizes: object) -> Iterator[Batch]:
        for batch in clean(rows, number, *sizes):
            poison = torch.full(batch.tokens.shape, torch.nan)
            yield replace(batch, counted=poison) if number in poisoned else batch

    loop.micro_batches = micro_batches
    worker.main()
