"""What a model can do: perplexity (choice, code, safety and judges will follow)."""

from jaxlab.evals import perplexity

__all__ = ["perplexity"]
