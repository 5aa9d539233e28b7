"""A split model at work: its stages on several machines, and the host that feeds them."""
