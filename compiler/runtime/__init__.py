"""Running a compiled library in this process."""
