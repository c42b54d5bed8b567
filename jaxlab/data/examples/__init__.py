"""Conversations, pairs, ranked lists and labelled texts, as rows."""
