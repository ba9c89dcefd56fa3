"""Text normalisation and tokenisers."""
