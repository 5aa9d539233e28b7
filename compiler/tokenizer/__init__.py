"""Make tokenizers for the C of a bundle, and hold that C, which Python calls, too."""
