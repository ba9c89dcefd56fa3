"""Corpus → durations: python jobs/align.py CONFIG [--set a.b=value] [--dry-run] [--json] [--no-resume]."""

import sys

from retort.cli import main

if __name__ == "__main__":
    main(["align", *sys.argv[1:]])
