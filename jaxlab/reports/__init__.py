"""Reports that people and programs read: one HTML page and one JSON file each."""
