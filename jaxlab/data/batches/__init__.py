"""Rows of token files: mixtures, packing, the loader, held-out windows."""
