"""A SentencePiece BPE model written as the tokenizer.json that the fast libraries read.

SentencePiece joins, again and again, the neighbours whose piece has the highest score; a tokenizer.json lists the joins
in that order. What a model may do beyond that (unigram, normalisation, pieces that the user defined) is left alone.
"""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPACE = "▁"


def bpe_tokenizer_json(model: "SentencePieceProcessor") -> str | None:
    """tokenizer.json of a BPE model with byte fallback and no normalisation (Llama 2's kind); None for any other."""
    specification = _specification(model)
    if specification is None:
        return None
    vocabulary = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if specification.normalizer_spec.add_dummy_prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.id_to_piece(model.unk_id()),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(_scores(model)),
        },
    }
    return json.dumps(content, ensure_ascii=False)


def _specification(model: "SentencePieceProcessor") -> Any:
    """The model's protocol buffer; None for a model that does more than a tokenizer.json can say."""
    from sentencepiece import sentencepiece_model_pb2

    # Protocol buffers have their classes only once they are imported.
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.serialized_model_proto())  # type: ignore[attr-defined]
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    plain = not (normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces)
    known = {proto.SentencePiece.NORMAL, proto.SentencePiece.UNKNOWN, proto.SentencePiece.CONTROL}
    known.add(proto.SentencePiece.BYTE)
    expressible = (
        trainer.model_type == trainer.BPE
        and trainer.byte_fallback
        and not trainer.treat_whitespace_as_suffix
        and normalizer.escape_whitespaces
        and plain
        and all(piece.type in known for piece in proto.pieces)
    )
    return proto if expressible else None


def _scores(model: "SentencePieceProcessor") -> dict[str, float]:
    """Score of each piece that joins may make; control, unknown and byte pieces are never made out of text."""
    return {
        model.id_to_piece(i): model.get_score(i)
        for i in range(model.get_piece_size())
        if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))
    }


def _merges(scores: dict[str, float]) -> list[list[str]]:
    """Every way to join two pieces into a third, the third with the highest score first."""
    joins = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    joins.sort(key=lambda join: -join[0])
    return [[left, right] for _, left, right in joins]
