"""Provide files, processes, progress and reports: what any stage may need and none is about."""
