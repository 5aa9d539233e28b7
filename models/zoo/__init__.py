"""Networks that edgec trained itself, small enough to be part of the repository."""
