"""A search: its configuration, its space, its trials and their results."""
