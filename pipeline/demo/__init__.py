"""The paper's experiment in miniature: its corpus, its start checkpoint and how both are made."""
