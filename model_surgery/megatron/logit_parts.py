"""How many tokens' logits are held at once: apart from torch, since the memory model asks too."""

PART_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Logits in fp32 that are held at once: on a CPU as much as stays in its caches."""

LEAST_TOKENS = 256
"""Of a part, whatever its bytes: a product with fewer rows keeps no processor busy."""


def part_tokens(words: int, device_type: str) -> int:
    """Tokens whose logits for `words` are held at once."""
    return max(LEAST_TOKENS, PART_BYTES[device_type] // (4 * words))
