"""`python -m hdmnet` is the command `hdmnet`."""

from hdmnet.cli import main

if __name__ == "__main__":
    main()
