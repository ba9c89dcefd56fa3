"""``python -m retort`` is ``retort``."""

from retort.cli import main

if __name__ == "__main__":
    main()
