"""A model critiques, revises and compares answers by principles in a file: AI feedback in place of people's."""
