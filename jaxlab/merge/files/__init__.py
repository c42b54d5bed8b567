"""Merges of checkpoints on disk, larger than memory: `stream.merge_files`."""
