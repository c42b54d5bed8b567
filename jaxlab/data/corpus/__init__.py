"""From text to token files: documents, domains, the held-out rule, writing."""
