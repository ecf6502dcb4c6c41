import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy
import pytest

from data_prep.errors import DataError
from data_prep.tokenizers.reference import load_tokenizer

ADVERSARIAL = ["", " ", "\x00\x01\x7f", "é😀e\u0301漢字", "a" * 3000, "tab\there\n\n  two  spaces", "1234567"]
# place below the shared data, largest id + 1, EOS
TOKENIZERS = {
    "smollm": (49152, 0, "<|endoftext|>"),
    "qwen2": (151646, 151645, "<|im_end|>"),
    "llama2": (32000, 2, "</s>"),
    "small": (2048, 2, "<|end|>"),
}


@pytest.fixture(scope="module")
def texts(stories: list[str]) -> list[str]:
    lines = [line for text in stories[100:200] for line in text.splitlines(keepends=True)]
    return stories[:100] + lines[:400] + ADVERSARIAL


@pytest.mark.parametrize("place", TOKENIZERS)
def test_vocabulary_and_end_of_sequence(tokenizer_of, place: str):
    tokenizer = load_tokenizer(tokenizer_of(place))
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.eos_token) == TOKENIZERS[place]


@pytest.mark.parametrize("place", ["smollm", "qwen2", "small"])
def test_ids_equal_transformers(tokenizer_of, texts: list[str], place: str):
    """The small one is read as its file says: AutoTokenizer (5.23) rebuilds a LlamaTokenizer in another way."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if place == "small":
        reference = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_of(place) / "tokenizer.json"))
    else:
        reference = AutoTokenizer.from_pretrained(tokenizer_of(place))
    plain = [text for text in texts if "<unk>" not in text]  # <unk> in WikiText is a special token's name
    assert len(plain) > 300
    expected = [reference.encode(text, add_special_tokens=False) for text in plain]
    assert load_tokenizer(tokenizer_of(place)).encode_batch(plain) == expected


def test_ids_equal_sentencepiece(tokenizer_of, texts: list[str]):
    from sentencepiece import SentencePieceProcessor

    file = tokenizer_of("llama2") / "tokenizer.model"
    reference = SentencePieceProcessor(model_file=str(file))
    ids = load_tokenizer(file).encode_batch(texts)
    assert ids == [[reference.piece_to_id(piece) for piece in reference.encode_as_pieces(text)] for text in texts]
    assert [reference.decode(one) for one in ids] == texts


@pytest.mark.parametrize("place", TOKENIZERS)
def test_special_names_in_text_stay_text(tokenizer_of, place: str):
    tokenizer = load_tokenizer(tokenizer_of(place))
    names = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>", "<s>", "<|start|>", tokenizer.eos_token}
    texts = [form.format(name) for name in names for form in ("{}", "a{}b", "a {} b", "\n{}\n", "{0}{0}")]
    special = {tokenizer.eos_id}
    if hasattr(tokenizer.backend, "get_added_tokens_decoder"):
        special = {i for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.content in names}
        assert tokenizer.eos_id in special
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids and not special & set(ids), text


@pytest.mark.parametrize("place", TOKENIZERS)
def test_flat_ids_are_the_batch_in_a_row(tokenizer_of, texts: list[str], place: str):
    tokenizer = load_tokenizer(tokenizer_of(place))
    tokens, expected = tokenizer.encode_flat(texts), tokenizer.encode_batch(texts)
    assert (tokens.ids.dtype, tokens.offsets.dtype) == (numpy.uint32, numpy.int64)
    assert len(tokens.offsets) == len(texts) + 1 and tokens.offsets[-1] == len(tokens.ids)
    assert [tokens.document(i).tolist() for i in range(len(texts))] == expected
    nothing = tokenizer.encode_flat([])
    assert len(nothing.ids) == 0 and nothing.offsets.tolist() == [0]


@pytest.mark.parametrize("place", TOKENIZERS)
def test_decoded_text_shows_special_tokens(tokenizer_of, place: str):
    tokenizer = load_tokenizer(tokenizer_of(place))
    ids = tokenizer.encode_flat(["One day, a naïve 漢字."]).ids
    text = tokenizer.decode([*ids, tokenizer.eos_id, *ids]).replace("▁", " ")
    assert text.count(tokenizer.eos_token) == 1
    assert [part.strip() for part in text.split(tokenizer.eos_token)] == [tokenizer.decode(ids).strip()] * 2
    if place != "small":  # its vocabulary has no such characters
        assert tokenizer.decode(ids) == "One day, a naïve 漢字."


def test_the_name_tells_the_library_and_its_version(tokenizer_of):
    assert load_tokenizer(tokenizer_of("smollm")).name == f"tokenizers {version('tokenizers')}"
    assert load_tokenizer(tokenizer_of("llama2")).name == f"sentencepiece {version('sentencepiece')}"


def test_special_ids_leave_out_what_text_has_by_right(tokenizer_of, tmp_path: Path):
    """SmolLM's own file lists U+FFFD, a character of many web pages, as special; <unk> is for unknown text."""
    content = json.loads((tokenizer_of("smollm") / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 24211, "content": "ï¿½"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    smollm = load_tokenizer(tmp_path)
    assert smollm.special_ids == set(range(17)) and smollm.eos_token in smollm.special_tokens
    assert smollm.encode_flat(["\ufffd"]).ids.tolist() == [24211]
    assert load_tokenizer(tokenizer_of("llama2")).special_ids == {1, 2}
    assert load_tokenizer(tokenizer_of("small")).special_ids == {1, 2}


def test_special_ids_of_a_unigram_model(tmp_path: Path):
    from tokenizers import AddedToken, Tokenizer, models

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0)]
    written = Tokenizer(models.Unigram(pieces, unk_id=2))
    written.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "</s>", "<unk>")])
    written.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_ids == {0, 1} and tokenizer.encode_flat(["b"]).ids.tolist() == [2]


@pytest.mark.parametrize("place", ["smollm", "qwen2", "small"])
def test_fast_json_is_the_tokenizer_without_its_special_tokens(tokenizer_of, texts: list[str], place: str):
    from tokenizers import Tokenizer

    tokenizer = load_tokenizer(tokenizer_of(place))
    content = json.loads(tokenizer.fast_json)
    assert not any(token["special"] for token in content["added_tokens"])
    without = Tokenizer.from_str(tokenizer.fast_json)
    texts = [*texts, *tokenizer.special_tokens]
    assert [one.ids for one in without.encode_batch_fast(texts)] == tokenizer.encode_batch(texts)


def test_a_file_is_as_good_as_its_folder(tokenizer_of):
    folder = tokenizer_of("smollm")
    by_file, by_folder = load_tokenizer(folder / "tokenizer.json"), load_tokenizer(folder)
    assert (by_file.digest, by_file.eos_id) == (by_folder.digest, by_folder.eos_id)


def test_end_of_sequence_without_settings_is_the_well_known_name(tokenizer_of, tmp_path: Path):
    shutil.copy(tokenizer_of("smollm") / "tokenizer.json", tmp_path)
    assert load_tokenizer(tmp_path).eos_token == "<|endoftext|>"


def test_digest_follows_the_content(tokenizer_of, tmp_path: Path):
    shutil.copytree(tokenizer_of("smollm"), tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    before = load_tokenizer(tmp_path).digest
    assert before == load_tokenizer(tokenizer_of("smollm")).digest
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    after = load_tokenizer(tmp_path)
    assert after.eos_id == 2 and after.digest != before


def _broken_folders(tokenizer_of, tmp_path: Path) -> dict[str, Path]:
    folders = {name: tmp_path / name for name in ("empty", "json", "model", "merges", "eos", "no_eos", "settings")}
    for folder in folders.values():
        folder.mkdir()
    (folders["json"] / "tokenizer.json").write_text("{")
    (folders["model"] / "tokenizer.model").write_bytes(b"not a model")
    (folders["merges"] / "vocab.json").write_text("{")
    (folders["merges"] / "merges.txt").write_text("a b")
    for name in ("eos", "settings"):
        shutil.copy(tokenizer_of("smollm") / "tokenizer.json", folders[name])
    (folders["eos"] / "tokenizer_config.json").write_text('{"eos_token": "<nowhere>"}')
    (folders["settings"] / "tokenizer_config.json").write_text("{")
    content = json.loads((tokenizer_of("small") / "tokenizer.json").read_text())
    (folders["no_eos"] / "tokenizer.json").write_text(json.dumps(content))
    return folders


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", "has no tokenizer.json"),
        ("json", r"tokenizer\.json: cannot be read \("),
        ("model", "not a SentencePiece model"),
        ("merges", "transformers cannot build it"),
        ("eos", "eos_token '<nowhere>' is not in the vocabulary"),
        ("no_eos", "no end-of-sequence token"),
        ("settings", "not JSON"),
    ],
)
def test_bad_tokenizers_are_refused(tokenizer_of, tmp_path: Path, name: str, says: str):
    _broken_folders(tokenizer_of, tmp_path)
    with pytest.raises(DataError, match=says) as caught:
        load_tokenizer(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
