"""Teacher → layer importance and a pruned model: python jobs/prune.py CONFIG [--set a.b=value] [--dry-run] [--json]."""

import sys

from retort.cli import main

if __name__ == "__main__":
    main(["prune", *sys.argv[1:]])
