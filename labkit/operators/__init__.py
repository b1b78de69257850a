"""What labkit knows of each kind of operator."""
