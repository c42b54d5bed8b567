"""What a model can do: perplexity (choice, code, safety and judges will follow).

`evals.sharpness`, of any loss and parameters: how sharp the loss surface is there.
"""

from jaxlab.evals import perplexity

__all__ = ["perplexity"]
