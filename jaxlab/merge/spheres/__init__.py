"""Merges along spheres: slerp, Karcher means, model stock."""
