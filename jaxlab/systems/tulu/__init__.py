"""TÜLU: instruction tuning and preference optimisation."""
