"""Compiled programs: cached by signature, compiled in parallel, loaded onto every device."""
