"""Statistics: correlations, bootstrap intervals, paired comparisons, CKA."""
