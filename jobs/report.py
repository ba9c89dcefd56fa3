"""Write a report again: python jobs/report.py CONFIG [--set a.b=value] [--dry-run] [--json] [--no-resume]."""

import sys

from retort.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
