"""Which channels depend on each other, and what each is worth."""
