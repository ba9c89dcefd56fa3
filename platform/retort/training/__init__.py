"""The seam between method and loop, the loop, the plain optimizer, its schedule, and teachers that follow students."""
