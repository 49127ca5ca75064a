"""Command-line programs: they parse flags, build a validated config and call the library."""
