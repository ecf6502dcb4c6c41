import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eval.config import RecallConfig
from eval.tasks.recall import grade, score_recall
from eval.tasks.recall_samples import RecallSamples, recall_samples

KEYS = tuple(f"k{i}" for i in range(8))
VALUES = ("a", "b", "c", "d")
IDS = {word: index for index, word in enumerate((*KEYS, *VALUES, "x"))}


def samples_of(count: int, values: tuple[str, ...] = VALUES, seed: int = 0) -> RecallSamples:
    config = RecallConfig(samples=count, needles=2, fact="{key} {value}", question="{key}", keys=KEYS, values=values)
    return recall_samples(config, lambda text: [IDS[word] for word in text.split()], np.empty(0), 24, seed)


def test_an_oracle_recalls_everything() -> None:
    samples = samples_of(50)
    score = grade(samples, samples.tokens[:, -1:])
    assert (score.value, score.stderr) == (1.0, 0.0)


def test_a_guess_among_the_values_is_at_chance() -> None:
    samples = samples_of(4000)
    guesses = np.random.default_rng(0).integers(IDS["a"], IDS["d"] + 1, (4000, 1))
    score = grade(samples, guesses)
    assert score.stderr == pytest.approx((0.25 * 0.75 / 4000) ** 0.5, rel=0.05)
    assert abs(score.value - 0.25) < 4 * score.stderr


def test_only_the_answers_own_positions_count() -> None:
    tokens = np.array([[0, 1, 2, 3], [0, 1, 2, 3]])
    samples = RecallSamples(tokens, np.array([2, 3]), ("k", "k"), ("v", "v"), (0.0, 0.0))
    score = grade(samples, np.array([[9, 3], [9, 3]]))
    assert score.right.tolist() == [False, True]
    assert score.given == ((9, 3), (3,))


@pytest.fixture(scope="module")
def overfitted() -> LlamaForCausalLM:
    """A tiny model that has seen 12 samples, with answers of one to three tokens, until it knew most of them."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(IDS), **shape, max_position_embeddings=64))
    seen = samples_of(12, ("a b c", "a", "a d", "c c"))
    ids = torch.from_numpy(seen.tokens)
    labels = ids.masked_fill(torch.arange(24) < torch.from_numpy(seen.answer_starts)[:, None], -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def test_what_was_learnt_by_heart_is_recalled(overfitted: LlamaForCausalLM) -> None:
    assert score_recall(overfitted, samples_of(12, ("a b c", "a", "a d", "c c")), 100).value == 1.0


def test_one_pass_equals_greedy_generation(overfitted: LlamaForCausalLM) -> None:
    """On samples never seen, so that some are right and some wrong."""
    samples = samples_of(80, ("a b c", "a", "a d", "c c"), seed=1)
    score = score_recall(overfitted, samples, 100)
    generated = []
    for row, start in zip(samples.tokens, samples.answer_starts, strict=True):
        prompt = torch.from_numpy(row[:start])[None]
        new = overfitted.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=int(24 - start),
            min_new_tokens=int(24 - start),
            do_sample=False,
            pad_token_id=0,
        )
        generated.append(new[0].tolist() == row.tolist())
    assert score.right.tolist() == generated
    assert 0 < score.value < 1
