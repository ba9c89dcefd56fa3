"""The Teacher/Objective/Stage seam, the loop, optimizer, EMA and metrics."""
