"""`python -m evenkeel` is the program `evenkeel`."""

from evenkeel.cli import main

if __name__ == "__main__":
    main()
