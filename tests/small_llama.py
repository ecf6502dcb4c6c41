"""A random Llama of the shape of TinyStories-656K with a tokenizer of the same kind: real text, quick to run."""

import json
from pathlib import Path

UNKNOWN, START, END = SPECIAL = ("<unk>", "<|start|>", "<|end|>")
VOCABULARY, CONTEXT, SPACE = 2048, 512, "▁"


def write_small_llama(folder: Path, texts: list[str]) -> None:
    """2 layers, hidden 128, 8 query and 4 KV heads, tied, context 512; weights wide enough for logits that differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    write_tokenizer(folder, texts)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """BPE without bytes: tokens carry the space after a word and reach over words; what is not ASCII is unknown.

    Its tokenizer_config.json names LlamaTokenizer, which transformers then builds in another way than the file says.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"(?:[^{SPACE}]+{SPACE}+){{1,2}}"), "isolated")
    alphabet = [chr(code) for code in range(33, 127)] + ["\n", SPACE]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A {START}:1 $B:1", special_tokens=[(START, 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_settings(folder)


def _write_settings(folder: Path) -> None:
    form = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    names = {"unk_token": UNKNOWN, "bos_token": START, "eos_token": END, "pad_token": UNKNOWN}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(index): {"content": name, "special": True, **form} for index, name in enumerate(SPECIAL)
        },
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "tokenizer_class": "LlamaTokenizer",
        **names,
    }
    special = {key: {"content": name, **form} for key, name in names.items()}
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
