"""What a merge writes: a whole folder, and where it came from."""
