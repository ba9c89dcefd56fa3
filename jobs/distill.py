"""Teacher → student: python jobs/distill.py CONFIG [--set a.b=value] [--dry-run] [--json] [--no-resume]."""

import sys

from retort.cli import main

if __name__ == "__main__":
    main(["distill", *sys.argv[1:]])
