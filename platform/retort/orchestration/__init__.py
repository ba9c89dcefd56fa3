"""The only package that knows Ray and DeepSpeed."""
