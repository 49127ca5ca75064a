"""Compiled programs: kept by signature, compiled side by side, loaded onto every device."""
