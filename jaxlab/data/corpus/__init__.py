"""From text to token files: documents in, domains with held-out sets out."""
