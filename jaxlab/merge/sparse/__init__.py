"""Merges that keep a part of every task vector: TIES, DARE and their like."""
