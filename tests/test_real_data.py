"""What the real models of the tests are: checked against what others say of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_surgery.verification.tokens import PASSAGE


def loss_of(folder: Path, text: str) -> float:
    """Nats per token of the text as one row, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        return model(ids, labels=ids).loss.item()


def test_smollm2_reads_english(smollm2: Path) -> None:
    """Queries and keys in another order of their dimensions, or digits that are not apart, cost whole nats."""
    assert loss_of(smollm2, PASSAGE.read_text(encoding="utf-8")) == pytest.approx(3.549, abs=0.03)


def test_its_tokenizer_ends_words_and_digits_where_smollm_s_does(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("It costs 1234 euros.\n\n  A naïve") == [
        *("It", "Ġcosts", "Ġ", "1", "2", "3", "4", "Ġeuros", ".", "ĊĊĠ", "ĠA", "Ġna", "Ã¯ve")
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 49152)


def test_two_layers_are_its_own(smollm2: Path, smollm2_two_layers: Path) -> None:
    from safetensors.torch import load_file

    whole, two = (load_file(folder / "model.safetensors") for folder in (smollm2, smollm2_two_layers))
    assert len(whole) == 2 + 30 * 9 and len(two) == 2 + 2 * 9
    assert all(torch.equal(tensor, whole[name]) for name, tensor in two.items())
    model = AutoModelForCausalLM.from_pretrained(smollm2_two_layers)
    assert (len(model.model.layers), model.config.num_hidden_layers) == (2, 2)


@pytest.mark.long
def test_wikitext_2(smollm2: Path, extra_data: Callable[[str], Path]) -> None:
    """3.2 to 3.3 nats, with rows of 512 and 1,024, is what an independent conversion gave."""
    text = (extra_data("text/wikitext2-test.txt")).read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    ids = torch.tensor(AutoTokenizer.from_pretrained(smollm2)(text[:40_000]).input_ids)
    rows = ids[: 8 * 512].view(8, 512)
    with torch.inference_mode():
        losses = [model(row[None], labels=row[None]).loss.item() for row in rows]
    assert 3.1 < sum(losses) / 8 < 3.4


def test_the_small_llama_knows_its_texts_words(small_llama: Path, real_texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_llama, tokenizer_class="PreTrainedTokenizerFast")
    assert len(tokenizer) == 2048
    ids = tokenizer(real_texts[:50]).input_ids
    assert sum(map(len, real_texts[:50])) / sum(map(len, ids)) > 2.5


def test_texts_are_english_and_each_is_there_once(real_texts: list[str]) -> None:
    assert len(real_texts) == len(set(real_texts)) == 516
    assert min(map(len, real_texts)) >= 300 and max(map(len, real_texts)) <= 3000
    assert sum(" the " in text for text in real_texts) > 450
