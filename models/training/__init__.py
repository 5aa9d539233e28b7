"""Hold scripts that trained the networks that come with edgec; the package does not import them."""
