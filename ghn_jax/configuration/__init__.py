"""Configs: values checked, dataclasses from and to what files hold."""
