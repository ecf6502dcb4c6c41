"""The training stage, in real processes, against a plain Hugging Face + torch loop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep import prepare
from data_prep.artifact import ShardSet
from data_prep.config import DataConfig
from data_prep.rows import build_rows
from model_surgery import export
from model_surgery.config import ExportConfig, SurgeryConfig
from model_surgery.convert import convert
from model_surgery.layout import Layout, read_sources
from pipeline.processes import torchrun
from pipeline.recalibration import checkpoints
from pipeline.recalibration.config import RecalibrationConfig
from pipeline.recalibration.job import Job
from pipeline.recalibration.metrics import read_metrics

ROW, BATCH, STEPS, LR = 32, 8, 10, 3e-3


@pytest.fixture(scope="module")
def shards(tiny_model: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    config = DataConfig(sources=({"path": str(documents)},), row_length=ROW, validation_fraction=0.1)
    prepare.run(config, tokenizer=tiny_model, model_vocab_size=96, out_dir=folder)
    return folder


@pytest.fixture(scope="module")
def models(
    tiny_model: Path, write_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    tied = write_model(tmp_path_factory.mktemp("tied-model"), tie_word_embeddings=True)
    return {"untied": tiny_model, "tied": tied}


@pytest.fixture(scope="module")
def layouts(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A TP 2 layout of each model."""
    folders = {name: tmp_path_factory.mktemp(f"layout-{name}") for name in models}
    for name, folder in folders.items():
        convert(SurgeryConfig(tensor_parallel=2), source=models[name], out_dir=folder)
    return folders


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


def train(config: RecalibrationConfig, layout: Path, shards: Path, out_dir: Path, position: str = "none") -> list[dict]:
    out_dir.mkdir(exist_ok=True)
    job = Job(config=config, position_embedding=position, layout=layout, shards=shards, out_dir=out_dir)
    (out_dir / "job.json").write_text(job.model_dump_json())
    processes = config.data_parallel * Layout.load(layout).tensor_parallel
    torchrun(
        "pipeline.recalibration.worker", [str(out_dir / "job.json")], processes=processes, log=out_dir / "engine.log"
    )
    return read_metrics(out_dir)


def reference(source_folder: Path, shards: Path, cache: Path, weight_decay: float) -> dict[str, Any]:
    """Ten steps of transformers' SmolLM3 without RoPE under torch's AdamW, in this process, on the same rows."""
    from transformers import AutoModelForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

    source = AutoModelForCausalLM.from_pretrained(source_folder)
    kept = {k: v for k, v in source.config.to_dict().items() if k not in ("model_type", "architectures")}
    model = SmolLM3ForCausalLM(SmolLM3Config(**kept, no_rope_layers=[0] * source.config.num_hidden_layers))
    model.load_state_dict(source.state_dict())
    rows = build_rows(ShardSet.load(shards), shards, train_rows=STEPS * BATCH, validation_rows=7, cache_dir=cache)

    def loss_of(indices: range) -> torch.Tensor:
        tokens = torch.stack([rows.train[i]["tokens"] for i in indices])
        labels = torch.stack([rows.train[i]["labels"] for i in indices])
        logits = model(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    lrs = [LR * s / 3 for s in (1, 2, 3)]
    lrs += [LR * (0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * s / 7)).item())) for s in range(1, 8)]
    losses, grad_norms = [], []
    for step in range(STEPS):
        loss = loss_of(range(step * BATCH, (step + 1) * BATCH))
        optimizer.zero_grad()
        loss.backward()
        grad_norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = lrs[step]
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "grad_norms": grad_norms, "lrs": lrs, "weights": model.state_dict()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "model", "weight_decay"), [(1, "untied", 0.0), (2, "untied", 0.1), (3, "tied", 0.1)]
)
def test_tp2_dp2_equals_single_process_reference(
    zero_stage: int,
    model: str,
    weight_decay: float,
    models: dict[str, Path],
    layouts: dict[str, Path],
    shards: Path,
    tmp_path: Path,
) -> None:
    wanted = reference(models[model], shards, tmp_path / "rows", weight_decay)
    config = settings(zero_stage=zero_stage, weight_decay=weight_decay)
    lines = train(config, layouts[model], shards, tmp_path / "out")[1:]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines] == pytest.approx(wanted["losses"], abs=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(wanted["grad_norms"], abs=1e-5)
    assert [line["lr"] for line in lines] == pytest.approx(wanted["lrs"], rel=1e-6)
    trained = Layout.load(tmp_path / "out" / "layout")
    for entry in trained.tensors:
        for name, tensor in read_sources(tmp_path / "out" / "layout", trained, entry).items():
            torch.testing.assert_close(tensor, wanted["weights"][name], atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_resumes_bit_identical_and_its_export_passes(
    zero_stage: int, tiny_model: Path, layouts: dict[str, Path], shards: Path, tmp_path: Path
) -> None:
    config = settings(data_parallel=1, zero_stage=zero_stage, precision="bf16")
    whole = train(config, layouts["untied"], shards, tmp_path / "whole")
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole", broken)
    # What a kill after step 9 leaves: the checkpoint of step 8 whole, a later one cut, and metrics beyond both.
    assert [path.name for path in checkpoints.complete(broken / "checkpoints")] == ["step-00000004", "step-00000008"]
    (broken / "checkpoints" / "step-00000009").mkdir()
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    (broken / "metrics.jsonl").write_text("\n".join(lines[:10]) + '\n{"step": 10, "lo')
    (broken / "layout" / "layout.json").unlink()
    resumed = train(config, layouts["untied"], shards, broken)
    for line in (*whole, *resumed):
        line.pop("tokens_per_second", None)
    assert resumed == whole
    assert Layout.load(broken / "layout").digest() == Layout.load(tmp_path / "whole" / "layout").digest()
    assert not (broken / "checkpoints" / "step-00000009").exists()
    assert json.loads(lines[0])["step"] == 0
    facts = export.run(
        ExportConfig(),
        layout_dir=broken / "layout",
        source=tiny_model,
        out_dir=tmp_path / "export",
        probe=broken / "probe.safetensors",
    )
    assert 1e-6 < facts["mean_difference"] < facts["limit"] == 5e-2
