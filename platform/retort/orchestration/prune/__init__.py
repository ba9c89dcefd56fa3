"""Layer importance on Ray Data."""
