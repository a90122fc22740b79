"""Retrieval: documents become passages, kept in an index, found again, and cited by answers that they bear out."""
