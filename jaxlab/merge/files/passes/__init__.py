"""The work on chunks: linear, sparse and spherical merges in threads."""
