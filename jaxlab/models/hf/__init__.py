"""Published checkpoints in and out: Hugging Face folders <-> (config, params)."""

from jaxlab.models.hf.folder import DTYPES, load, read_config, save

__all__ = ["DTYPES", "load", "read_config", "save"]
