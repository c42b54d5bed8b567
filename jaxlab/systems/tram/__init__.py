"""TRAM: which optimizer leaves a model better where it was not trained."""
