"""Published checkpoints in and out: Hugging Face folders <-> (config, params)."""

from jaxlab.models.hf.folder import DTYPES, TOKENIZER_FILES, load, read_config, save

__all__ = ["DTYPES", "TOKENIZER_FILES", "load", "read_config", "save"]
