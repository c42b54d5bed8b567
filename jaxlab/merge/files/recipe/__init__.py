"""Recipes: what to merge and how, as arguments, mergekit's YAML or merge.json."""
