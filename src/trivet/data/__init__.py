"""Prompts, chat format, collating; importers of the field's formats."""
