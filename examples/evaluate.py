"""`hdmnet evaluate` as a file, for launchers that need one.

    python examples/evaluate.py folders MY_DATA --out OUT

is `hdmnet evaluate folders MY_DATA --out OUT`.
"""

import sys

from hdmnet.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
