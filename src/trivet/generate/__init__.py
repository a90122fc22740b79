"""One interface to text generation, and its engines."""
