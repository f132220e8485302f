"""Examples: where images come from (`datasets`), who trains on them, and how they are viewed."""
