"""Measures what forward passes and answers take of the memory: `python -m tests.eval.memory_worker CASES.json`.

CASES.json: a list of cases, each with a Llama's config, dtype, length, and whether an answer is generated. Prints a
list of bytes: the peak of reading one row or of answering one prompt, beyond the model alone.
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import eval.answers.generation
from eval.answers.generation import generate
from eval.tasks.forward import token_losses
from tests.process_memory import begin_peak_anew, resident

BATCH_TOKENS = 512
"""Of a piece of a prompt."""


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps([measure(case) for case in json.loads(Path(sys.argv[1]).read_text())]))


def measure(case: dict) -> int:
    """Bytes of one case; a short row is read first, for what the libraries take at the first time."""
    config, length = LlamaConfig(**case["config"]), case["length"]
    model = LlamaForCausalLM._from_config(
        config, dtype=getattr(torch, case["dtype"]), attn_implementation="sdpa"
    ).eval()
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (1, length + 1))
    read(model, rows[:, :65], case["generated"])
    gc.collect()
    before = resident("VmRSS")
    begin_peak_anew()
    read(model, rows, case["generated"])
    return resident("VmHWM") - before


def read(model: LlamaForCausalLM, rows: np.ndarray, generated: bool) -> None:
    """The losses of the rows, or one token of an answer."""
    if not generated:
        token_losses(model, rows, rows.size)
        return
    settings = {"new_tokens": 1, "batch_tokens": BATCH_TOKENS, "stop": lambda index, tokens: True}
    eval.answers.generation.free_bytes = lambda device: 0  # as little as there can be: nothing but the prompt itself
    list(generate(model, rows[:, :-1].tolist(), **settings))


if __name__ == "__main__":
    main()
