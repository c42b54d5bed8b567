"""`python -m jaxlab VERB`: the command line, where `jaxlab` is not on the PATH."""

import sys

from jaxlab import cli

if __name__ == "__main__":
    sys.exit(cli.run())
