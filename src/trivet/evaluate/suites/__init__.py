"""Suites: each asks a model one kind of question and says what came out, item by item."""
