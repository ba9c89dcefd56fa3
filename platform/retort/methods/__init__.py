"""The published methods, each as a list of stages."""
