"""`python -m edutools`: the command line."""

from edutools.cli import main

if __name__ == "__main__":
    main()
