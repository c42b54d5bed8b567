"""Statistics that every report uses.

Correlations, bootstrap intervals, similarity of representations, paired comparisons.
"""
