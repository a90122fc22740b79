"""Where weights come from; one frozen trunk, its adapters and heads; saving."""
