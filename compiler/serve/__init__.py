"""Serve bundles over HTTP, by interfaces that clients already speak."""
