"""The published code's way on one device: transformers' Llama with SDPA and an identity RoPE, trained by its Trainer.

`python -m benchmarks.gpu_train.published CASE` prints what it took as JSON. What is like the published code, and what
is not, stands in benchmarks/README.md; as there, bf16 under DeepSpeed ZeRO 1, without recomputation.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.gpu_train.cases import Case
from benchmarks.gpu_train.measure import ALONE, synchronize
from benchmarks.recalibration.trainer_spec import BETAS, EPS, GRADIENT_CLIP
from benchmarks.recalibration.trainer_way import IdentityRotation, deepspeed_config
from model_surgery.shape import ModelShape


def main() -> None:
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))


def measure(case: Case) -> dict[str, Any]:
    """Seconds of every timed step, the loss of the last one, peak memory."""
    on_gpu = torch.cuda.is_available()
    os.environ |= ALONE
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(**({} if on_gpu else {"backend": "gloo"}))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=llama(ModelShape.model_validate(case.shape)),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=case.steps,
                per_device_train_batch_size=case.micro_batch,
                gradient_accumulation_steps=case.accumulate,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                adam_epsilon=EPS,
                max_grad_norm=GRADIENT_CLIP,
                bf16=True,
                use_cpu=not on_gpu,
                deepspeed=deepspeed_config("bf16"),
                accelerator_config={"use_configured_state": True, "dispatch_batches": False},
                remove_unused_columns=False,
                logging_steps=case.steps,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=RandomRows(case),
            data_collator=default_data_collator,
            callbacks=[clock],
        )
        result = trainer.train()
    memory = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {"seconds": clock.seconds[case.warm_up :], "losses": [result.training_loss], "memory_bytes": memory}


def llama(shape: ModelShape) -> LlamaForCausalLM:
    """Random weights in bf16; every attention still applies a rotation, the identity."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        attn_implementation="sdpa",
        dtype="bfloat16",
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for layer in model.model.layers:
        layer.self_attn.__class__ = IdentityRotation
    return model


class RandomRows(torch.utils.data.Dataset):
    """Rows of random tokens, drawn when they are asked for."""

    def __init__(self, case: Case) -> None:
        self._count = case.steps * case.micro_batch * case.accumulate
        self._length, self._vocab = case.length, case.shape["vocab"]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(self._vocab, (self._length,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}


class Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *arguments: Any, **others: Any) -> None:
        synchronize()
        self._began = time.perf_counter()

    def on_step_end(self, *arguments: Any, **others: Any) -> None:
        synchronize()
        self.seconds.append(time.perf_counter() - self._began)


if __name__ == "__main__":
    main()
