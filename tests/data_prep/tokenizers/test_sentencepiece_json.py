from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from data_prep.tokenizers.adversarial import adversarial_texts
from data_prep.tokenizers.sentencepiece_json import bpe_tokenizer_json

PLAIN = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


def _train(folder: Path, stories: list[str], **settings: object) -> SentencePieceProcessor:
    SentencePieceTrainer.train(
        sentence_iterator=iter(stories[:150]),
        model_prefix=str(folder / "trained"),
        vocab_size=700,
        minloglevel=2,
        **(PLAIN | settings),
    )
    return SentencePieceProcessor(model_file=str(folder / "trained.model"))


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_ids_equal_the_model_it_was_made_of(tmp_path: Path, stories: list[str], dummy_prefix: bool):
    from tokenizers import Tokenizer

    model = _train(tmp_path, stories, add_dummy_prefix=dummy_prefix)
    written = Tokenizer.from_str(bpe_tokenizer_json(model))
    texts = stories + adversarial_texts(["<s>", "</s>", "<unk>"])
    ids = [encoding.ids for encoding in written.encode_batch_fast(texts, add_special_tokens=False)]
    assert ids == model.encode(texts, out_type=int)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "unigram"},
        {"byte_fallback": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"treat_whitespace_as_suffix": True},
        {"user_defined_symbols": ["<name>"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_models_that_do_more_have_no_such_form(tmp_path: Path, stories: list[str], settings: dict):
    assert bpe_tokenizer_json(_train(tmp_path, stories, **settings)) is None
