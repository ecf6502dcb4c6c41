"""The tokenizer's files of an exported model."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from foundation.files import atomic_path, write_json
from model_surgery.files import read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_TOKENIZER_CONFIG = "tokenizer_config.json"


def copy_tokenizer(tokenizer: Path, source: Path, out_dir: Path) -> list[str]:
    """Copies the tokenizer's files, and the source's generation config; returns the names of what was written.

    Files are copied byte for byte but tokenizer_config.json, in which the class may have to be another one.
    """
    folders = dict.fromkeys(TOKENIZER_FILES, tokenizer) | {"generation_config.json": source}
    names = [name for name, folder in folders.items() if (folder / name).is_file()]
    for name in names:
        with atomic_path(out_dir / name) as temporary:
            shutil.copyfile(folders[name] / name, temporary)
    settings = read_json(tokenizer / _TOKENIZER_CONFIG) if _TOKENIZER_CONFIG in names else {}
    exported = tokenizer_settings(settings, names)
    if exported == settings:
        return names
    write_json(out_dir / _TOKENIZER_CONFIG, exported)
    return sorted({*names, _TOKENIZER_CONFIG})


def tokenizer_settings(settings: dict[str, Any], files: Collection[str]) -> dict[str, Any]:
    """tokenizer_config.json with the class by which AutoTokenizer gives the ids that the model was trained with.

    Beside a tokenizer.json that is PreTrainedTokenizerFast, which takes the file as it is. LlamaTokenizer (since
    transformers 5) builds a tokenizer of its own from the file's vocabulary and merges: it cuts some texts otherwise.
    A tokenizer.model alone needs LlamaTokenizer; with no class named, AutoTokenizer cuts every text otherwise.
    """
    if "tokenizer.json" in files:
        kept = {key: value for key, value in settings.items() if key != "auto_map"}  # names a class in remote code
        return {**kept, "tokenizer_class": "PreTrainedTokenizerFast"}
    if "tokenizer.model" in files:
        return {"tokenizer_class": "LlamaTokenizer", **settings}
    return settings
