"""Statistics that every report uses: correlations, bootstrap intervals."""
