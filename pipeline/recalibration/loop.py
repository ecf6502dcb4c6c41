"""The training run of one rank, top to bottom."""

import time
from collections.abc import Iterator
from contextlib import nullcontext

import deepspeed
import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.artifact import ShardSet
from data_prep.rows import build_rows
from model_surgery.layout import Layout, read_rank
from pipeline.recalibration import checkpoints
from pipeline.recalibration.batches import Batch, micro_batches, read_rows
from pipeline.recalibration.engine import build_engine
from pipeline.recalibration.job import Job
from pipeline.recalibration.loss import loss_factor, share_of_loss, summed_loss
from pipeline.recalibration.metrics import Metrics
from pipeline.recalibration.outcome import save_outcome
from pipeline.recalibration.parallel import mean_over_data_parallel
from pipeline.recalibration.portable import starting_layout
from pipeline.recalibration.schedule import lr_factor
from pipeline.recalibration.state import DeepSpeedState


def train(job: Job, device: torch.device) -> None:
    """Trains from the newest complete checkpoint (or the layout) to the end of the token budget."""
    config = job.config
    shards, layout = ShardSet.load(job.shards), Layout.load(job.layout)
    steps = config.steps(shards.row_length)
    rows = build_rows(
        shards,
        job.shards,
        train_rows=steps * config.batch,
        validation_rows=config.validation_rows,
        mask_documents=config.mask_documents,
        cache_dir=job.out_dir / "row-index",
    )
    folder = job.out_dir / "checkpoints"
    weights = starting_layout(checkpoints.newest(folder), job.layout)
    slices = read_rank(weights, Layout.load(weights), parallel_state.get_tensor_model_parallel_rank())
    engine = build_engine(config, layout, slices, job.position_embedding)
    done = checkpoints.resume(engine, folder)

    is_first = torch.distributed.get_rank() == 0
    writer = Metrics(job.out_dir, done=done, steps=steps, description=job.description) if is_first else nullcontext()
    with writer as metrics:
        if done == 0:
            record(metrics, 0, {"validation_loss": validate(engine, rows.validation, config.micro_batch, device)})
        for step in range(done + 1, steps + 1):
            began = time.perf_counter()
            lr = config.lr * lr_factor(step, steps, config.schedule)
            loss = train_step(engine, micro_batches(rows.train, step, config.batch, config.micro_batch, device), lr)
            numbers = {
                "loss": mean_over_data_parallel(loss),
                "lr": lr,
                "grad_norm": float(engine.get_global_grad_norm()),
                "tokens": step * config.batch * shards.row_length,
                "tokens_per_second": config.batch * shards.row_length / (time.perf_counter() - began),
            }
            if step % config.validation_every == 0 or step == steps:
                numbers["validation_loss"] = validate(engine, rows.validation, config.micro_batch, device)
            record(metrics, step, numbers)
            if step % config.checkpoint_every == 0 and step < steps:
                if metrics:
                    metrics.sync()
                state = describe(job, layout, step, step * config.batch * shards.row_length)
                checkpoints.save(engine, folder, state, config.keep_checkpoints)
    save_outcome(engine, job, layout, rows.validation, steps, steps * config.batch * shards.row_length, device)


def describe(job: Job, layout: Layout, step: int, tokens: int) -> DeepSpeedState:
    """What a checkpoint of this run says of itself after `step` steps."""
    return DeepSpeedState(
        step=step,
        tokens=tokens,
        tensor_parallel=layout.tensor_parallel,
        data_parallel=job.config.data_parallel,
        zero_stage=job.config.zero_stage,
        position_embedding=job.position_embedding,
        shape=layout.shape,
        **layout.origin,
    )


def record(metrics: Metrics | None, step: int, numbers: dict[str, float]) -> None:
    """Writes a step's numbers where this rank is the one that does."""
    if metrics:
        metrics.write(step, numbers)


def train_step(engine: deepspeed.DeepSpeedEngine, batches: Iterator[Batch], lr: float) -> Tensor:
    """One optimizer update at learning rate `lr`; a scalar whose mean over data-parallel ranks is the batch's loss."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    batches = list(batches)  # how much each counts depends on all of them
    factor = loss_factor(batches)
    losses = []
    for batch in batches:
        loss = share_of_loss(engine, batch, factor)
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def validate(engine: deepspeed.DeepSpeedEngine, rows: Dataset, micro_batch: int, device: torch.device) -> float:
    """Mean loss over the held-out rows, nats per token; every data-parallel rank takes its share of them.

    It is the loss that is trained: where documents are masked, they are masked here too and only counted tokens weigh.
    """
    engine.eval()
    count, ranks = len(rows), parallel_state.get_data_parallel_world_size()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    with torch.no_grad():
        # Every rank makes the same number of passes (ZeRO-3 gathers weights in each); surplus rows do not count.
        for start in range(0, count, micro_batch * ranks):
            mine = start + parallel_state.get_data_parallel_rank() * micro_batch
            indices = [index for index in range(mine, mine + micro_batch) if index < count]
            found = summed_loss(engine, read_rows(rows, indices or [0], device))
            if indices:
                total += found
    engine.train()
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    return (total[0] / total[1]).item()
