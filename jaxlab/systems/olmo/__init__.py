"""OLMo: open pre-training."""
