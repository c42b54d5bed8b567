"""Reports that people look at: one self-contained page, and its numbers."""
