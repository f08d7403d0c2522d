"""`python -m seqproc.cli`: the command line."""

from seqproc.cli import main

if __name__ == "__main__":
    main()
