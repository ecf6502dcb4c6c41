"""Training runs in real processes, and the same run by transformers and torch in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.artifact import ShardSet
from data_prep.rows import RowDataset, build_rows
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.layout import Layout
from pipeline.recalibration import run as stage
from pipeline.recalibration.metrics import MEASURED, read_metrics
from pipeline.recipe.recalibration import RecalibrationConfig

ROW, BATCH, STEPS, LR = 32, 8, 10, 3e-3
EOS = 1


@pytest.fixture(scope="session")
def shards(documents: Path, write_shards: Callable[..., ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents in the tiny model's tokens, 40 of 400 held out, in three shards each.

    Two of three are cut to 3 words, so that rows hold very different numbers of documents.
    """
    folder = tmp_path_factory.mktemp("shards")
    texts = [json.loads(line)["text"] for line in documents.read_text(encoding="utf-8").splitlines()]
    ids = [[*(int(word[1:]) + 2 for word in text.split()), EOS] for text in texts]
    ids = [document if number % 3 == 0 else [*document[:3], EOS] for number, document in enumerate(ids)]
    write_shards(folder, (1.0, ids[40:], ids[:40]), shards=3, vocab_size=96, eos_id=EOS, row_length=ROW)
    return folder


@pytest.fixture(scope="session")
def models(
    tiny_model: Path,
    odd_model: Path,
    qwen2_model: Path,
    write_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    tied = write_model(tmp_path_factory.mktemp("tied-model"), tie_word_embeddings=True)
    return {"untied": tiny_model, "tied": tied, "odd": odd_model, "qwen2": qwen2_model}


@pytest.fixture(scope="session")
def layouts(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A TP 2 layout of each model."""
    folders = {name: tmp_path_factory.mktemp(f"layout-{name}") for name in models}
    for name, folder in folders.items():
        convert(SurgeryConfig(tensor_parallel=2), source=models[name], out_dir=folder)
    return folders


@pytest.fixture(scope="session", name="settings")
def _settings() -> Callable[..., RecalibrationConfig]:
    """Ten steps on two data-parallel ranks; keyword arguments change single settings."""

    def settings(**changes: object) -> RecalibrationConfig:
        values = {
            "tokens": STEPS * BATCH * ROW,
            "batch": BATCH,
            "micro_batch": 2,
            "data_parallel": 2,
            "lr": LR,
            "precision": "fp32",
            "schedule": {"kind": "cosine", "warmup_steps": 3, "min_lr_ratio": 0.1},
            "checkpoint_every": 4,
            "validation_rows": 7,
            "validation_every": 5,
        }
        return RecalibrationConfig.model_validate(values | changes)

    return settings


@pytest.fixture(scope="session", name="train")
def _train() -> Callable[..., list[dict[str, float]]]:
    """Runs the training of a config, at its layout's TP degree or another; returns the lines of metrics.jsonl."""

    def train(
        config: RecalibrationConfig,
        layout: Path,
        shards: Path,
        out_dir: Path,
        position: str = "none",
        tensor_parallel: int | None = None,
    ) -> list[dict[str, float]]:
        out_dir.mkdir(exist_ok=True)
        degree = tensor_parallel or Layout.load(layout).tensor_parallel
        folders = {"layout": layout, "shards": shards, "out_dir": out_dir}
        stage.run(config, position, tensor_parallel=degree, **folders)
        return read_metrics(out_dir)

    return train


def source_model(folder: Path, position: str) -> torch.nn.Module:
    """transformers' own model of a checkpoint: with its RoPE, or with every rotation made the identity."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if position == "none":
        config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": 1e30}
    return AutoModelForCausalLM.from_pretrained(folder, config=config)


def block_mask(documents: torch.Tensor) -> torch.Tensor:
    """Additive [rows, 1, length, length] mask written down entry by entry."""
    rows, length = documents.shape
    mask = torch.full((rows, 1, length, length), torch.finfo(torch.float32).min)
    for row in range(rows):
        for query in range(length):
            for key in range(query + 1):
                if documents[row, query] == documents[row, key]:
                    mask[row, 0, query, key] = 0.0
    return mask


def reference_loss(model: torch.nn.Module, rows: RowDataset, indices: range) -> torch.Tensor:
    """The mean loss over all counted tokens of the rows, in one pass over them."""
    items = [rows[index] for index in indices]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    tokens, labels = batch["tokens"], batch["labels"].flatten()
    masked = "documents" in batch
    mask = block_mask(batch["documents"]) if masked else torch.ones_like(tokens)
    logits = model(tokens, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return losses[tokens.flatten() != EOS].mean() if masked else losses.mean()


@pytest.fixture(scope="session", name="reference")
def _reference() -> Callable[..., dict[str, Any]]:
    """Ten steps (or `steps`) of transformers' model under torch's AdamW, in this process, on the same rows.

    `prepare` changes the model before; after `drop_at_step` steps RoPE is dropped.
    """

    def reference(
        source_folder: Path,
        shards: Path,
        cache: Path,
        *,
        weight_decay: float = 0.0,
        position: str = "none",
        mask_documents: bool = False,
        steps: int = STEPS,
        drop_at_step: int | None = None,
        prepare: Callable[[torch.nn.Module], None] = lambda model: None,
    ) -> dict[str, Any]:
        model = source_model(source_folder, position)
        prepare(model)
        sizes = {"train_rows": steps * BATCH, "validation_rows": 7, "cache_dir": cache}
        rows = build_rows(ShardSet.load(shards), shards, mask_documents=mask_documents, **sizes)
        matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
        norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
        lrs = [LR * s / 3 for s in (1, 2, 3)]
        decay = [torch.tensor(torch.pi * s / (steps - 3)) for s in range(1, steps - 2)]
        lrs += [LR * (0.1 + 0.9 * 0.5 * (1 + torch.cos(angle).item())) for angle in decay]
        losses, grad_norms = [], []
        for step in range(steps):
            if step == drop_at_step:
                model.model.rotary_emb.inv_freq.zero_()  # every rotation is the identity from here on
            loss = reference_loss(model, rows.train, range(step * BATCH, (step + 1) * BATCH))
            optimizer.zero_grad()
            loss.backward()
            grad_norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
            for group in optimizer.param_groups:
                group["lr"] = lrs[step]
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            held = reference_loss(model, rows.validation, range(len(rows.validation))).item()
        outcome = {"losses": losses, "grad_norms": grad_norms, "lrs": lrs, "validation_loss": held}
        return outcome | {"model": model, "weights": model.state_dict(), "rows": rows}

    return reference


@pytest.fixture(scope="session", name="without_measured")
def _without_measured() -> Callable[[list[dict]], list[dict]]:
    """The lines of metrics.jsonl without what depends on clocks and machines."""

    def without_measured(lines: list[dict]) -> list[dict]:
        return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]

    return without_measured
