"""Where a sweep looks next, and which trials it ends early; no Ray."""
