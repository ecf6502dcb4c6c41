import pytest
from pydantic import ValidationError

from data_prep.artifact import Counts, Shard, SourceShards, Split, set_digest
from data_prep.inspection import histogram


def shard(name: str, documents: int = 2) -> Shard:
    return Shard(prefix=name, documents=documents, tokens=10 * documents, digest=name)


def source(**changes: object) -> dict:
    counts = Counts(documents=6, kept=4, empty=1, rejected=1)
    splits = {"train": Split(shards=(shard("a"), shard("b", 1))), "validation": Split(shards=(shard("c", 1),))}
    settled = {"name": "n", "source": "s", "weight": 1, "counts": counts, "bytes_per_token": 4.0, "eos_tokens": 4}
    return {**settled, "lengths": (0, 4), **splits, **changes}


def test_documents_that_do_not_add_up_are_refused():
    with pytest.raises(ValidationError, match=r"7 documents read, but 4 kept \+ 1 empty \+ 1 rejected \+ 0 surplus"):
        Counts(documents=7, kept=4, empty=1, rejected=1)
    total = Counts(documents=6, kept=4, empty=1, rejected=1) + Counts(
        documents=1, kept=0, empty=0, rejected=0, surplus=1
    )
    assert total == Counts(documents=7, kept=4, empty=1, rejected=1, surplus=1)


def test_counts_must_agree_with_the_shards():
    assert SourceShards(**source()).train.tokens == 30
    with pytest.raises(ValidationError, match=r"counts\.kept is 5, but the shards hold 4 documents"):
        SourceShards(**source(counts=Counts(documents=5, kept=5, empty=0, rejected=0)))
    with pytest.raises(ValidationError, match="eos_tokens is 5, but the shards hold 4 documents"):
        SourceShards(**source(eos_tokens=5))


def test_digests_follow_content_and_order():
    one, two = (Split(shards=shards) for shards in ((shard("a"), shard("b")), (shard("b"), shard("a"))))
    assert one.digest != two.digest
    first = SourceShards(**source())
    assert set_digest((first,)) == set_digest((first.model_copy(update={"name": "other"}),))
    moved = source(train=Split(shards=(shard("b", 1), shard("a"))))
    assert set_digest((first,)) != set_digest((SourceShards(**moved),))


def test_the_histogram_names_its_ranges():
    lines = histogram((0, 0, 3, 0, 6))
    assert [line.split() for line in lines] == [
        ["4", "to", "7", "tokens", "3", "#" * 20],
        ["8", "to", "15", "tokens", "0"],
        ["16", "to", "31", "tokens", "6", "#" * 40],
    ]
