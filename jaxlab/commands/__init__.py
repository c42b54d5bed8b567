"""The verbs of the command line: `run(args)` of one module each; see `cli.py`."""
