"""`python -m tune`, the same as `lightning-ecd tune`."""

import sys

from tune.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
