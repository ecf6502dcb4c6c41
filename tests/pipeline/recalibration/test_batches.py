"""Which rows every rank reads, in real processes: the same global batches whatever their number."""

from pathlib import Path

import pytest
import torch

from data_prep.artifact import ShardSet
from data_prep.rows import build_rows
from tests.forked import Starter

BATCH, STEPS = 8, 6

WORKER = """
import sys, torch
from pathlib import Path
from torch import distributed
from data_prep.artifact import ShardSet
from data_prep.rows import build_rows
from model_surgery.megatron.model import start_parallel
from pipeline.recalibration.batches import micro_batches

rank, world, tensor_parallel, first, last = map(int, sys.argv[1:6])
shards, folder = Path(sys.argv[6]), Path(sys.argv[7])
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
start_parallel(tensor_parallel)
rows = build_rows(
    ShardSet.load(shards), shards, train_rows=48, validation_rows=None, mask_documents=True, cache_dir=folder / "cache"
)
read = {}
for step in range(first, last + 1):
    batches = list(micro_batches(rows.train, step, 8, 2, torch.device("cpu")))
    assert all(len(batch.tokens) == 2 for batch in batches)
    names = ("tokens", "labels", "documents", "counted")
    read[step] = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
torch.save(read, folder / f"rank{rank}.pt")
distributed.barrier()
"""


def read_by(
    starter: Starter, folder: Path, shards: Path, world: int, steps: range, tensor_parallel: int = 1
) -> list[dict[int, dict[str, torch.Tensor]]]:
    """What each of `world` processes reads at these steps."""
    folder.mkdir()
    counts = [world, tensor_parallel, steps[0], steps[-1]]
    starter.run_together(
        [["-c", WORKER, str(rank), *map(str, counts), str(shards), str(folder)] for rank in range(world)]
    )
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world)]


@pytest.mark.slow
@pytest.mark.long
def test_a_run_may_continue_on_another_number_of_ranks(starter: Starter, shards: Path, tmp_path: Path) -> None:
    """Steps 1-2 on one rank, 3-4 on two, 5-6 on four: batch n is rows 8 (n - 1) to 8 n - 1, all and in order."""
    cache = tmp_path / "single"
    loaded = ShardSet.load(shards)
    rows = build_rows(loaded, shards, train_rows=48, validation_rows=None, mask_documents=True, cache_dir=cache).train
    expected = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert len(torch.unique(expected["tokens"], dim=0)) == len(rows) == STEPS * BATCH
    for world, steps in ((1, range(1, 3)), (2, range(3, 5)), (4, range(5, 7))):
        ranks = read_by(starter, tmp_path / str(world), shards, world, steps)
        for step in steps:
            for name, tensor in expected.items():
                batch = torch.cat([read[step][name] for read in ranks])
                assert torch.equal(batch, tensor[(step - 1) * BATCH : step * BATCH])


@pytest.mark.slow
def test_tensor_parallel_ranks_read_the_same_rows(starter: Starter, shards: Path, tmp_path: Path) -> None:
    first, second, third, fourth = (
        read[1]["tokens"] for read in read_by(starter, tmp_path / "4", shards, 4, range(1, 2), 2)
    )
    assert torch.equal(first, second) and torch.equal(third, fourth)
    assert not torch.equal(first, third)
