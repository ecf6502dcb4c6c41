"""Text -> token ids: the reference libraries, and fast ones that are checked against them."""
