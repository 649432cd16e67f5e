"""`python -m fedvad` is the `fedvad` command."""

from fedvad.cli.main import main

if __name__ == "__main__":
    main()
