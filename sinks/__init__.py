"""Destinations: one file each, delivered to by `sinks.delivery`."""
