"""Data ablation by merging modularly trained models."""
