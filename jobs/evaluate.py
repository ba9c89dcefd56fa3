"""Systems → results and report: python jobs/evaluate.py CONFIG [--set a.b=value] [--dry-run] [--json] [--no-resume]."""

import sys

from retort.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
