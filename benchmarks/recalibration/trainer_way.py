"""The published loop: transformers' Trainer over DeepSpeed ZeRO-1, RoPE kept in the attention as an identity.

One process: `python -m benchmarks.recalibration.trainer_way SPEC`. What is like the published code, and what is not,
stands in benchmarks/README.md (github.com/SakanaAI/DroPE: train.py, cfgs/, accelerate_configs/deepspeed_zero1.yaml).
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator
from transformers.models.llama.modeling_llama import LlamaAttention

from benchmarks.recalibration.trainer_spec import BETAS, EPS, GRADIENT_CLIP, LR, TrainerSpec, write_peak
from pipeline.launch.processes import die_with_parent


class IdentityRotation(LlamaAttention):
    """Llama's attention with its RoPE still applied, by cos = 1 and sin = 0."""

    def forward(self, hidden_states: torch.Tensor, position_embeddings: tuple, *rest: object, **named: object) -> tuple:
        cos, sin = position_embeddings
        return super().forward(hidden_states, (torch.ones_like(cos), torch.zeros_like(sin)), *rest, **named)


class MappedRows(torch.utils.data.Dataset):
    """Row i of a memory-mapped .npy file [rows, length + 1], as the model's arguments."""

    def __init__(self, path: Path) -> None:
        self._rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self._rows[index].astype(np.int64))
        # The labels are given as they are, so that the last token of a row counts as it does in this project's rows.
        named = {"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]}
        return named | {"attention_mask": torch.ones_like(row[:-1])}


def load_model(spec: TrainerSpec) -> LlamaForCausalLM:
    """The source model in the case's precision, every attention's class exchanged; the weights are the same."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec.case.precision]
    model = LlamaForCausalLM.from_pretrained(spec.model, dtype=dtype, attn_implementation="sdpa")
    for layer in model.model.layers:
        layer.self_attn.__class__ = IdentityRotation
    return model


def arguments(spec: TrainerSpec) -> TrainingArguments:
    """The published settings, on the CPU, with this benchmark's numbers."""
    case = spec.case
    return TrainingArguments(
        output_dir=str(spec.out_dir),
        max_steps=case.steps,
        per_device_train_batch_size=case.micro_batch,
        gradient_accumulation_steps=case.batch // (case.micro_batch * case.ranks),
        gradient_checkpointing=case.recompute == "full",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        max_grad_norm=GRADIENT_CLIP,
        bf16=case.precision == "bf16",
        use_cpu=True,
        deepspeed=deepspeed_config(case.precision),
        accelerator_config={"use_configured_state": True, "dispatch_batches": False},
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_strategy="steps",
        logging_steps=1,
        report_to="tensorboard",
        save_strategy="no",
        disable_tqdm=True,
    )


def deepspeed_config(precision: str) -> dict[str, object]:
    """What accelerate makes of deepspeed_zero1.yaml; "auto" is filled in by the Trainer."""
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": float("inf"),
    }


def main() -> None:
    die_with_parent()
    spec = TrainerSpec.load(Path(sys.argv[1]))
    # accelerate takes DeepSpeed for a matter of GPUs; with the process group made beforehand it runs it on gloo.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(spec.out_dir / "tensorboard")
    PartialState(backend="gloo")
    trainer = Trainer(
        model=load_model(spec),
        args=arguments(spec),
        train_dataset=MappedRows(spec.rows),
        data_collator=default_data_collator,
    )
    trainer.train()
    trainer.save_model(str(spec.out_dir / "model"))
    write_peak(spec.out_dir)


if __name__ == "__main__":
    main()
