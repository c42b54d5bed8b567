"""Token files of a corpus of any size: the plan, its workers, Beam, how they read."""
