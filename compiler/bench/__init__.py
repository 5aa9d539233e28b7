"""Provide latency, profiles, and other runtimes measured beside edgec in turns."""
