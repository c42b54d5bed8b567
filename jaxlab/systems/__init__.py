"""The systems, one folder each: a config becomes an Experiment or a report.

`SYSTEMS` is the one table of what a config may name as its `system`.
"""

# config.system -> the module and the function that make its Experiment.
SYSTEMS = {
    "olmo.pretrain": ("olmo.pretraining", "pretrain"),
    "tulu.sft": ("tulu.tuning", "sft"),
    "tulu.dpo": ("tulu.tuning", "dpo"),
    "languages.classify": ("tram.classification", "classify"),
    "encoders.rerank": ("refit.training", "rerank"),
    "encoders.embed": ("refit.training", "embed"),
}
