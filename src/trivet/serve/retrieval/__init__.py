"""Retrieval: documents are cut into passages, kept in an index, found again, and cited by answers that they bear out."""
