"""Tokenising a corpus of any size: the plan, its workers, Beam, what they write."""
