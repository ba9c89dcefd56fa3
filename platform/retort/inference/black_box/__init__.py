"""Teachers of which nothing is known but what they say: text in, sound out."""
