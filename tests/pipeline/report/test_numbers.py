"""Single numbers at the top of the page."""

from pipeline.report.numbers import in_fp8


def test_what_was_in_fp8_is_told_by_what_was_chosen() -> None:
    assert in_fp8({"fp8_attention": True, "fp8_linear": False}) == "attention in FP8, matrices in bf16, "
    assert in_fp8({"fp8_attention": False, "fp8_linear": True}) == "attention in bf16, matrices in FP8, "
    assert in_fp8({}) == "attention in bf16, matrices in bf16, "  # a run of an earlier version
