"""Data ablation by merging: predict how any mixture of data would train, from averages.

pool = ModelPool.create({"math": params, "code": params, "web": params})
ranking = rank_mixtures(pool, pool.mixtures(), {"exams": batches}, token_losses)
score = merged_score(pool, {"exams": batches}, token_losses)
best = greedy_search(pool, score, within=Limits(must=("web",), max_size=3))

Names load when they are first used: the command line asks for the names of the searches
(`method_names`) before it knows whether it needs jax.
"""

import importlib

_NAMES = {
    "convex": ("convex_search",),
    "documents": ("DocumentLosses",),
    "ensemble": ("TokenLogps", "expert_logps"),
    "gradient": ("gradient_search", "loss_and_slopes"),
    "limits": ("Limits",),
    "outcomes": ("Agreement", "Correlation", "agreement", "regret"),
    "pareto": ("pareto_front", "sweep"),
    "pool": ("Cost", "Mixture", "ModelPool"),
    "proxies": (
        "document_losses", "model_losses", "predictions", "proxy_losses",
    ),
    "ranking": ("RankedMixture", "rank", "rank_mixtures"),
    "search": (
        "Found", "ensemble_score", "enumerate_best", "greedy_search", "merged_score",
    ),
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_FILES = ("cache", "ensemble", "pool_folder")  # that are used by their own names

__all__ = sorted([*_MODULES, *_FILES])


def __getattr__(name: str):
    if name in _FILES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__():
    return [*globals(), *__all__]
