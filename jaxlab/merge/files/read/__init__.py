"""Checkpoints as merges read them: tensors by byte, and whether they go together."""
