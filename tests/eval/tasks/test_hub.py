"""lm-eval's own tasks from a Hub cache that was filled from a small Hub on this machine, which is then gone."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import HubServer

NAME = "allenai/ai2_arc"
README = """---
configs:
- config_name: ARC-Easy
  data_files:
  - {split: train, path: ARC-Easy/train.parquet}
  - {split: validation, path: ARC-Easy/validation.parquet}
  - {split: test, path: ARC-Easy/test.parquet}
---
"""
ITEMS = 12

FETCH = "import datasets; datasets.load_dataset('allenai/ai2_arc', 'ARC-Easy')"
SCORE = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from eval.config import HarnessTask
from eval.errors import EvaluationError
from eval.tasks.harness import read_items, score_harness

torch.set_num_threads(1)
source, local = map(Path, sys.argv[1:])
model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
for task in (HarnessTask(name="arc_easy"), HarnessTask(name="ours", path=local, suffix="\\nAnswer:")):
    items = read_items(task)
    scores = score_harness(model, tokenizer, task, items, context=512, batch_tokens=4096, seed=0)
    print("FOUND", json.dumps([len(items), {score.metric: score.values for score in scores}]))
for name in ("piqa", "hellaswag"):
    try:
        read_items(HarnessTask(name=name))
    except EvaluationError as error:
        print("MISSING", error)
"""


@pytest.fixture(scope="module")
def items(benchmarks: Path) -> list[dict]:
    lines = (benchmarks / "arc_easy.jsonl").read_text().splitlines()[:ITEMS]
    return [json.loads(line) for line in lines]


def table(items: list[dict]) -> bytes:
    """Items as ARC's own files hold them."""
    rows = []
    for number, item in enumerate(items):
        labels = [*"ABCDE"][: len(item["choices"])]
        question = item["query"].removeprefix("Question: ")
        choices = {"text": item["choices"], "label": labels}
        rows.append({"id": str(number), "question": question, "choices": choices, "answerKey": labels[item["gold"]]})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def run(program: str, *arguments: object, **more: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    given = {**kept, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", **more}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, env=given, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300
    )


def test_a_task_of_lm_eval_runs_from_the_cache_alone(items: list[dict], source: Path, tmp_path: Path) -> None:
    parquet = table(items)
    files = {f"ARC-Easy/{split}.parquet": parquet for split in ("train", "validation", "test")}
    server = HubServer(NAME, {"README.md": README.encode(), **files})
    home = str(tmp_path / "hf")
    try:
        fetched = run(FETCH, HF_ENDPOINT=server.url, HF_HOME=home)
    finally:
        server.stop()
    assert fetched.returncode == 0, fetched.stderr
    local = tmp_path / "local.jsonl"
    local.write_text("\n".join(map(json.dumps, items)))
    done = run(SCORE, source, local, HF_ENDPOINT=server.url, HF_HOME=home)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line.removeprefix("FOUND ")) for line in done.stdout.splitlines() if line.startswith("FOUND")]
    (own_items, own), (local_items, ours) = results
    assert own_items == local_items == ITEMS
    assert own == ours, "lm-eval's own prompt over the Hub's items, and the same items in a local file"
    missing = [line for line in done.stdout.splitlines() if line.startswith("MISSING")]
    assert len(missing) == 2
    assert "the data of piqa are not in this machine's Hub cache" in missing[0]
    assert "lm_eval --model dummy --tasks piqa --limit 1" in missing[0]
