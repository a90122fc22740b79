"""Whatever scores or compares answers."""
