"""The evaluation's memory: by hand, and against the memory of real forward passes and answers."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eval.config import EvaluationConfig, LossConfig
from eval.device import device_bytes
from eval.errors import EvaluationError
from eval.memory import Sizes, activation_bytes, evaluation_memory, kv_cache_bytes, require_memory
from eval.models import Models
from eval.run import check, run, run_task
from eval.units import plan_units
from tests.eval.memory_worker import BATCH_TOKENS

REPOSITORY = Path(__file__).resolve().parents[2]
LLAMA = Sizes(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000, tied=False)
"""Llama 2 7B."""
CONFIG = EvaluationConfig(variants=("rope", "drope"), context_factors=(1, 16), dtype="bfloat16")
NIAH = {"tasks": ("niah_single_1",)}


def test_llama_at_16_times_its_context_by_hand() -> None:
    rows = evaluation_memory(LLAMA, CONFIG, 4096)
    assert (rows.factor, rows.tokens, rows.kv_cache) == (16, 65536, 0)
    assert rows.weights == pytest.approx(2 * 6.738e9, rel=1e-3)  # the published count of weights
    assert rows.activations == 65536 * (4 * 4096 + 3 * 11008) * 2
    assert kv_cache_bytes(LLAMA, 65536, 2) == 2 * 32 * 32 * 128 * 65536 * 2 == 34_359_738_368
    asked = evaluation_memory(LLAMA, CONFIG.model_copy(update={"niah": EvaluationConfig(niah=NIAH).niah}), 4096)
    assert asked.kv_cache == 34_359_738_368
    assert asked.activations == 16384 * (4 * 4096 + 3 * 11008) * 2  # in pieces of batch_tokens
    assert str(asked) == "46.1 GiB at 16x (65,536 tokens): weights 12.6, KV cache 32.0, activations 1.5"


def test_what_the_settings_change() -> None:
    def of(**changes: Any) -> Any:
        config = EvaluationConfig.model_validate(CONFIG.model_dump(by_alias=False) | changes)
        return evaluation_memory(LLAMA, config, 4096)

    assert of(dtype="float32").total == 2 * of().total
    assert (
        of(context_factors=(1,), batch_tokens=10_000).activations
        == 2 * of(context_factors=(1,), batch_tokens=5000).activations
    )
    assert of(niah=NIAH, variants=("dynamic_ntk",)).activations == of().activations  # must read a prompt whole
    assert of(niah=NIAH | {"context_factors": (1, 32)}).kv_cache == 2 * 34_359_738_368
    assert of(longbench={"factor": 8}, context_factors=(1,)).factor == 8


def test_sizes_count_the_weights_of_the_model() -> None:
    for tied in (True, False):
        config = LlamaConfig(**MEASURED["feed-forward"][0], tie_word_embeddings=tied)
        counted = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters() if parameter.ndim > 1)
        assert Sizes.of(config).parameters == counted


COMMON = {"vocab_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
MEASURED: dict[str, tuple[dict[str, int], str]] = {
    "feed-forward": (COMMON | {"hidden_size": 256, "intermediate_size": 704}, "float32"),
    "attention, grouped": (
        COMMON | {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2},
        "float32",
    ),
    "bf16": (COMMON | {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 128}, "bfloat16"),
    "logits": (COMMON | {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 32768}, "float32"),
    "answer": (COMMON | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 12}, "float32"),
}
LENGTH = 4096


@pytest.mark.long
@pytest.mark.slow
def test_estimates_are_near_what_a_process_holds(tmp_path: Path) -> None:
    cases = [
        {
            "config": sizes | {"max_position_embeddings": LENGTH},
            "dtype": dtype,
            "length": LENGTH,
            "generated": name == "answer",
        }
        for name, (sizes, dtype) in MEASURED.items()
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.eval.memory_worker", str(tmp_path / "cases.json")]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=REPOSITORY)
    measured = dict(zip(MEASURED, json.loads(done.stdout.splitlines()[-1]), strict=True))
    for name, (sizes, dtype) in MEASURED.items():
        shape, value = Sizes.of(LlamaConfig(**sizes)), getattr(torch, dtype).itemsize
        estimate = activation_bytes(shape, BATCH_TOKENS if name == "answer" else LENGTH, value)
        estimate += kv_cache_bytes(shape, LENGTH, value) if name == "answer" else 0
        print(f"{name}: estimated {estimate / 1e6:.0f} MB, measured {measured[name] / 1e6:.0f} MB")
        # Libraries load and make code at first use, some MB of it, more on some CPUs.
        assert estimate == pytest.approx(measured[name], rel=0.2, abs=12e6), name


def test_what_the_machine_cannot_hold_is_refused_before_any_work(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 MB at 1x and 212 MB at 64x, on a machine of 100 MiB."""
    monkeypatch.setattr("eval.run.device_bytes", lambda device: 100 << 20)
    needles = {"tasks": ("niah_single_1",), "samples": 1, "context_factors": (1, 64)}
    config = EvaluationConfig(variants=("rope",), context_factors=(1,), loss={"tokens": 512}, niah=needles)
    message = (
        r"(656k|small-llama\S*): .* estimated 0\.2 GiB at 64x \(32,768 tokens\): weights 0\.0, .*; there are 0\.1 GiB; "
    )
    out_dir = tmp_path / "out"
    units = [unit.name for unit in plan_units(config)]
    assert units == ["loss-rope-1x", "niah_single_1-rope-1x", "niah_single_1-rope-64x"]
    for start in (run, partial(run_task, task=2, of=3)):
        with pytest.raises(EvaluationError, match=message) as caught:
            start(config, models=models, out_dir=out_dir)
        assert str(caught.value).endswith(
            " GiB; take smaller niah.context_factors or longbench.factor or dtype bfloat16"
        )
        assert not out_dir.exists()
    check(config, models)  # of a machine that only plans, or puts together what others have scored
    run_task(config, models=models, out_dir=out_dir, task=0, of=3)  # this one's share fits
    assert [path.name for path in (out_dir / "units").iterdir()] == ["loss-rope-1x.json"]


def test_the_way_out_is_one_that_helps() -> None:
    def advice(config: EvaluationConfig) -> str:
        memory = evaluation_memory(LLAMA, config, 4096)
        require_memory(Path("model"), memory, config, memory.total)
        with pytest.raises(EvaluationError) as caught:
            require_memory(Path("model"), memory, config, memory.total - 1)
        return str(caught.value).rpartition("; take ")[2]

    assert advice(CONFIG) == "smaller context_factors"
    assert advice(
        CONFIG.model_copy(update={"batch_tokens": 2**18, "dtype": "float32", "loss": LossConfig(tokens=2**20)})
    ) == ("smaller context_factors or a smaller batch_tokens or dtype bfloat16")
    assert advice(EvaluationConfig(niah=NIAH, dtype="bfloat16")) == "smaller niah.context_factors or longbench.factor"


def test_a_machine_has_no_more_than_its_memory() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < device_bytes(torch.device("cpu")) <= total
