"""Generate text with the language model of a bundle, by the C that is in the bundle."""
