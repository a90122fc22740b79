"""From rankings to preference pairs."""
