"""Faust apps and workers under test."""
