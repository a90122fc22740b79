"""What can be said of a text by rule."""
