"""The ten systems, one file each: a config becomes an Experiment or a report."""
