"""A fit from the inside: what it costs."""
