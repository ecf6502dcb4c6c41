"""lm-eval's scores against the same numbers computed here, straight from the model's logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from eval.config import HarnessTask
from eval.errors import EvaluationError
from eval.tasks.harness import HarnessScore, read_items, score_harness


@pytest.fixture(scope="module")
def model(source: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(source: Path) -> object:
    return AutoTokenizer.from_pretrained(source)


def log_likelihood(model: LlamaForCausalLM, tokenizer: object, context: str, continuation: str) -> float:
    """Sum of the log-probabilities of the tokens that " continuation" adds after the context's own number of tokens.

    The context is tokenized alone, as lm-eval does: this tokenizer's tokens carry the space after a word, so the space
    between the two is in neither part.
    """
    start = tokenizer.encode(context)
    added = tokenizer.encode(f"{context} {continuation}")[len(start) :]
    ids = torch.tensor([start + added])
    with torch.inference_mode():
        logs = model(ids).logits[0, :-1].log_softmax(-1)
    return logs[torch.arange(ids.shape[1] - 1), ids[0, 1:]][-len(added) :].sum().item()


def run(model: LlamaForCausalLM, tokenizer: object, task: HarnessTask) -> dict[str, HarnessScore]:
    scores = score_harness(model, tokenizer, task, read_items(task), context=512, batch_tokens=4096, seed=0)
    return {score.metric: score for score in scores}


@pytest.mark.parametrize("suffix", ["", "\nAnswer:"])
def test_arc_easy_equals_our_own_computation(
    benchmarks: Path, model: LlamaForCausalLM, tokenizer: object, suffix: str
) -> None:
    path = benchmarks / "arc_easy.jsonl"
    scores = run(model, tokenizer, HarnessTask(name="arc_easy", path=path, limit=40, suffix=suffix))
    right, right_norm = [], []
    for line in path.read_text().splitlines()[:40]:
        item = json.loads(line)
        sums = np.array([log_likelihood(model, tokenizer, item["query"] + suffix, c) for c in item["choices"]])
        right.append(sums.argmax() == item["gold"])
        right_norm.append((sums / [len(choice) for choice in item["choices"]]).argmax() == item["gold"])
    assert scores["acc"].samples == 40
    assert scores["acc"].value == pytest.approx(np.mean(right))
    assert scores["acc_norm"].value == pytest.approx(np.mean(right_norm))
    assert scores["acc"].stderr == pytest.approx(np.std(right, ddof=1) / np.sqrt(40))
    assert 0 < scores["acc"].value < 1


def test_winogrande_compares_contexts(benchmarks: Path, model: LlamaForCausalLM, tokenizer: object) -> None:
    path = benchmarks / "winogrande.jsonl"
    scores = run(model, tokenizer, HarnessTask(name="winogrande", path=path, limit=20))
    right = []
    for line in path.read_text().splitlines()[:20]:
        item = json.loads(line)
        sums = [log_likelihood(model, tokenizer, c, item["continuation"]) for c in item["context_options"]]
        right.append(int(np.argmax(sums)) == item["gold"])
    assert set(scores) == {"acc"}
    assert scores["acc"].value == pytest.approx(np.mean(right))


def test_digits_stay_text_and_one_item_has_no_error(tmp_path: Path, model: LlamaForCausalLM, tokenizer: object) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"query": "12", "choices": ["13", "zebra"], "gold": 0, "more": "is ignored"}) + "\n")
    scores = run(model, tokenizer, HarnessTask(name="count", path=path))
    sums = [log_likelihood(model, tokenizer, "12", choice) for choice in ("13", "zebra")]
    assert (scores["acc"].samples, scores["acc"].value) == (1, float(np.argmax(sums) == 0))
    assert scores["acc"].stderr is None


def test_examples_come_before_the_prompt_by_the_seed(
    tmp_path: Path, model: LlamaForCausalLM, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "items.jsonl"
    items = [{"query": f"Tom has {n} cats and he", "choices": ["went home", "ate a ball"], "gold": 0} for n in range(9)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    inner = model.forward

    def prompts(num_fewshot: int, seed: int) -> list[list[int]]:
        read: list[list[int]] = []

        def watched(ids: torch.Tensor, *args: object, **kwargs: object) -> object:
            read.extend(ids.tolist())
            return inner(ids, *args, **kwargs)

        task = HarnessTask(name="cats", path=path, num_fewshot=num_fewshot)
        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", watched)
            score_harness(model, tokenizer, task, read_items(task), context=512, batch_tokens=512, seed=seed)
        return read

    plain, two = prompts(0, seed=0), prompts(2, seed=0)
    for rows, shown in ((plain, 1), (two, 3)):
        assert len(rows) == 2 * len(items)
        assert {tokenizer.decode(row).count("Tom has") for row in rows} == {shown}
    assert two == prompts(2, seed=0) != prompts(2, seed=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"harness\.task: .*items\.jsonl does not exist; give a local \.jsonl file"),
        ("", r"items\.jsonl has no items"),
        ("{", r"items\.jsonl:1: not JSON: \w"),
        ("[1]", "items.jsonl:1: unknown format"),
        ('{"query": "q", "choices": ["a", "b"]}', "items.jsonl:1: unknown format"),
        ('{"query": "q", "choices": ["a"], "gold": 0}', r"items\.jsonl:1: needs at least two choices"),
        (
            '{"query": "q", "choices": ["a", ""], "gold": 0}',
            r"items\.jsonl:1: needs at least two choices, each a text that is not empty",
        ),
        ('{"query": "q", "choices": ["a", "b"], "gold": 2}', "gold = 2 with 2 choices"),
        (
            '{"query": "q", "choices": ["a", "b"], "gold": 0}\n'
            '{"context_options": ["a", "b"], "continuation": "c", "gold": 0}',
            "items.jsonl:2: another form",
        ),
    ],
)
def test_bad_file_is_refused_with_its_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "items.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        read_items(HarnessTask(name="task", path=path))


def test_more_examples_than_items_are_refused(benchmarks: Path) -> None:
    path = benchmarks / "arc_easy.jsonl"
    with pytest.raises(EvaluationError, match="num_fewshot = 3 with 3 items"):
        read_items(HarnessTask(name="arc_easy", path=path, limit=3, num_fewshot=3))
