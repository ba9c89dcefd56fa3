"""Word error rate, speakers, stability, confidence, speed, bootstrap and the report."""
