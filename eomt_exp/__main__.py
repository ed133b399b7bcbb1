"""`python -m eomt_exp`."""

from eomt_exp.cli import main

if __name__ == "__main__":
    main()
