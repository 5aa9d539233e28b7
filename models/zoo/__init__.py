"""Networks that edgec trained itself, and graphs that it writes around the weights of others."""
