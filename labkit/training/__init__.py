"""Training a network, alone or many at once."""
